"""What is timed: every method on the same pair of networks, each with copies of its own."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from blockkd import costs, devices
from blockkd.baselines.decoupled import DecoupledKD
from blockkd.baselines.logits import KD, CrossEntropy
from blockkd.baselines.review import ReviewKD
from blockkd.bench.naive import NaiveBlockKD
from blockkd.block_kd import BlockKD
from blockkd.devices import Mode, fused
from blockkd.distiller import Distiller
from blockkd.folding import fold_batch_norm

NAIVE, KD_FOLDED, ALL_FOLDED, LAST_FOLDED, LAST_RECORDED = (
    "all stones, naive",
    "KD, folded",
    "all stones, folded",
    "last stone, folded",
    "last stone, recorded",
)
RECORDED = ", recorded"


@dataclass(frozen=True)
class Batch:
    """What every contender is given.

    Attributes:
        images: ``(B, C, H, W)``, on the device.
        labels: ``(B,)``, on the device.
        bf16: whether the forward pass runs under autocast to bfloat16.
    """

    images: Tensor
    labels: Tensor
    bf16: bool = False

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def precision(self) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class Contender:
    """One method and its optimizer, ready to take steps.

    Args:
        name: in the table.
        distiller: the method, with networks that no other contender has; moved to the batch's device.
        batch: taken in every step.
        learned: what the optimizer changes; by default all parameters of the distiller.
        compiled: how the distiller is compiled.
        recorded: what the teacher has said of the batch, ``(B, K)``; then it is not run.
    """

    def __init__(
        self,
        name: str,
        distiller: Distiller,
        batch: Batch,
        learned: Iterable[nn.Parameter] | None = None,
        compiled: Mode = "off",
        recorded: Tensor | None = None,
    ) -> None:
        self.name, self.batch = name, batch
        self.context = {} if recorded is None else {"recorded": recorded}
        self.distiller = distiller.to(batch.device).train()
        learned = [p for p in (self.distiller.parameters() if learned is None else learned) if p.requires_grad]
        # The field's optimizer for CIFAR-100; a rate at which nothing diverges on noise.
        self.optimizer = fused(torch.optim.SGD(learned, lr=1e-4, momentum=0.9, weight_decay=5e-4))
        self._compute = devices.compiled(distiller, compiled)

    def step(self) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        with self.batch.precision():
            losses = self._compute(self.batch.images, self.batch.labels, **self.context)
        losses.total.backward()
        self.optimizer.step()

    def flops(self) -> int:
        """Floating-point operations of a step, a multiply-add counted as two."""
        with self.batch.precision():
            return costs.step_flops(self.distiller, self.batch.images, self.batch.labels, **self.context)

    def saved_bytes(self) -> int:
        """What is kept for the backward pass."""
        with self.batch.precision():
            return costs.saved_bytes(self.distiller, self.batch.images, self.batch.labels, **self.context)


def contenders(
    teacher: nn.Module, student: nn.Module, batch: Batch, *, channels_last: bool = False, compiled: Mode = "off"
) -> Iterator[Contender]:
    """All of ours, one after the other: without teacher, with it as it is, with its batch norm folded, with its logits
    recorded, and naive.

    Args:
        teacher, student: on the batch's device; copied for each contender.
        batch: what they are timed on.
        channels_last: lay out weights and features channels-last, but for the naive one.
        compiled: how to compile, but for the naive one.
    """
    for name, distiller in _methods(teacher, student, batch.images[:2]):
        if channels_last:
            distiller.to(memory_format=torch.channels_last)
        recorded = _logits(distiller, batch) if name.endswith(RECORDED) else None
        yield Contender(name, distiller, batch, compiled=compiled, recorded=recorded)
    naive = NaiveBlockKD(BlockKD(copy.deepcopy(teacher), copy.deepcopy(student), batch.images[:2]))
    yield Contender(NAIVE, naive, batch)


def _methods(teacher: nn.Module, student: nn.Module, few: Tensor) -> Iterator[tuple[str, Distiller]]:
    yield "cross-entropy", CrossEntropy(None, copy.deepcopy(student))
    folded = fold_batch_norm(teacher, few)
    for suffix, frozen in (("", teacher), (", folded", folded), (RECORDED, folded)):

        def pair(frozen: nn.Module = frozen) -> tuple[nn.Module, nn.Module]:
            return copy.deepcopy(frozen), copy.deepcopy(student)

        yield f"KD{suffix}", KD(*pair())
        yield f"DKD{suffix}", DecoupledKD(*pair())
        if suffix != RECORDED:  # it needs the teacher's features
            yield f"ReviewKD{suffix}", ReviewKD(*pair(), few)
        last = BlockKD(*pair(), few, stones="last")
        n = len(last.student_blocks)
        yield f"last stone{suffix}", last
        if n > 2:  # with two blocks these are all
            yield f"last two stones{suffix}", BlockKD(*pair(), few, stones=[n - 1, n])
        yield f"all stones{suffix}", BlockKD(*pair(), few)


def _logits(distiller: Distiller, batch: Batch) -> Tensor:
    with batch.precision():
        return distiller.to(batch.device).teacher_logits(batch.images).clone()


@torch.no_grad()
def settle(network: nn.Module, images: Tensor) -> nn.Module:
    """Give a network that was not trained the batch norm statistics of these images, so that its values are usual."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all that was seen
    network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network
