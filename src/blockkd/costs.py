"""What a network costs: parameters, operations per input; and what a training step costs: operations, memory."""

import copy
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from blockkd.block_kd import BlockKD
from blockkd.blocks import Blocks
from blockkd.calling import Inputs, count, logits_of
from blockkd.distiller import Distiller
from blockkd.ranks import alone


def parameters(network: nn.Module) -> int:
    """The number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def flops(network: nn.Module, example: Inputs, **beside: Any) -> int:
    """Floating-point operations of one forward pass for one input, a multiply-add counted as two.

    Counted by ``torch.utils.flop_counter``: convolutions, matrix products and attention; what is neither
    (batch norm, activations, additions) costs nothing there.

    Args:
        network: put into evaluation mode for the count, and back after it.
        example: a batch of inputs ``(B, ...)``.
        beside: what else the network, or the part of one, is called with.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            logits_of(network, example) if not beside else network(example, **beside)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops()) // count(example)


def step_flops(distiller: Distiller, inputs: Any, targets: Int[Tensor, " B"], **context: Tensor) -> int:
    """Floating-point operations of one training step on this batch: forward and backward, without the optimizer's.

    Counted as in ``flops``, over all that runs: student, teacher, stones and whatever else the method has. The step
    is taken in training mode and in the distiller's present epoch, by a copy: nothing of the distiller, its teacher
    or the random state moves. While it lasts it needs memory for that copy.

    Args:
        distiller: the method.
        inputs: a batch ``(B, ...)``.
        targets: labels ``(B,)``.
        context: what else the distiller is called with.

    Returns:
        FLOPs for the whole batch.
    """
    with _copy_that_trains(distiller) as trial, FlopCounterMode(display=False) as counter:
        trial(inputs, targets, **context).total.backward()
    return int(counter.get_total_flops())


def block_costs(blocks: Blocks, example: Inputs) -> list[tuple[int, int]]:
    """Parameters, and FLOPs of a forward pass for one input, of each block and at last of the classifier.

    Args:
        blocks: a network, cut.
        example: a batch of inputs ``(B, ...)``, one tensor or named ones.
    """
    found = []
    inputs: Any = example
    with torch.no_grad():
        beside = blocks.beside(example)
        for part in (*blocks.blocks, blocks.classifier):
            found.append((parameters(part), flops(part, inputs, **beside)))
            inputs = part(inputs, **beside)
    return found


def stone_flops(distiller: BlockKD, stone: int, example: Inputs) -> int:
    """FLOPs that a stone adds to a training step, for one input: its connector three times (forward, gradient of input
    and of weights), the frozen tail twice.

    Args:
        distiller: the method.
        stone: which of its stones, 1 … n.
        example: a batch of inputs ``(B, ...)``, one tensor or named ones.
    """
    teacher, student = distiller.teacher_blocks, distiller.student_blocks
    with torch.no_grad():
        features, _ = student.run(example)
        beside = teacher.beside(example)
    feature = features[stone - 1].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        tail = distiller.connectors[str(stone)](feature)
        for block in teacher.blocks[stone:]:
            tail = block(tail, **beside)
        teacher.classifier(tail, **beside).sum().backward()
    return int(counter.get_total_flops()) // count(example)


def saved_bytes(distiller: Distiller, inputs: Any, targets: Int[Tensor, " B"], **context: Tensor) -> int:
    """Bytes that autograd holds for the backward pass at the moment when it begins, on this batch.

    That is the part of a training step's memory that grows with the batch: feature maps, and also masks, pooling
    indices, normalisation statistics and casted weights, in whatever type they are. Memory that several operations
    save, or views of which are saved, counts once and whole, since it stays as a whole. Not counted is what is there
    without the step: ``inputs``, ``targets`` and ``context``, parameters and buffers of student, teacher and method.
    Nor is what autograd does not see: workspaces, gradients, what a custom function keeps by itself.

    The forward pass is done in training mode by a copy, as in ``step_flops``.

    Args:
        distiller: the method.
        inputs: a batch ``(B, ...)``.
        targets: labels ``(B,)``.
        context: what else the distiller is called with.

    Returns:
        Bytes for the whole batch.
    """
    # The graph owns the holders, so those of results that were not kept are gone by the time of the sum.
    alive: weakref.WeakSet[_Holder] = weakref.WeakSet()

    def hold(tensor: Tensor) -> _Holder:
        holder = _Holder(tensor)
        alive.add(holder)
        return holder

    with _copy_that_trains(distiller) as trial:
        # Held, as memory that a method lets go of would be found again under what is saved next.
        at_hand = list(_tensors_at_hand(trial, inputs, targets, context))
        there = {_storage(tensor) for tensor in at_hand}
        with saved_tensors_hooks(hold, _Holder.get):
            total = trial(inputs, targets, **context).total
        sizes = {_storage(holder.tensor): holder.tensor.untyped_storage().nbytes() for holder in alive}
        del total  # held until here, and with it the graph
    return sum(size for storage, size in sizes.items() if storage not in there)


class _Holder:
    """One tensor saved for backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an operation that saves its own result would keep itself alive

    def get(self) -> Tensor:
        return self.tensor


@contextmanager
def _copy_that_trains(distiller: Distiller) -> Iterator[Distiller]:
    """A copy to take a step with. Only a copy leaves alone what a method notes outside of buffers, as FCFD's draws."""
    with isolate_rng(), torch.enable_grad(), alone():
        torch.manual_seed(
            0
        )  # what a step costs may hang on what a method draws, and is not to hang on when it is asked
        yield copy.deepcopy(distiller).train()


def _tensors_at_hand(trial: Distiller, inputs: Any, targets: Tensor, context: Mapping[str, Tensor]) -> Iterator[Tensor]:
    yield from (leaf for leaf in pytree.tree_leaves((inputs, targets, context)) if isinstance(leaf, Tensor))
    for network in (trial, trial.teacher):
        if network is not None:
            yield from network.parameters()
            yield from network.buffers()


def _storage(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()
