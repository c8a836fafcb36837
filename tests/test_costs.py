"""Operations and memory of a training step, against counts by hand, and that counting changes nothing."""

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from blockkd import KD, BlockKD, CrossEntropy, costs
from blockkd.baselines import CRD, FCFD
from blockkd.distiller import Distiller, Losses
from blockkd.models import create_model
from tests.networks import IMAGE, Plain

BATCH = 4
FLOAT = 4  # bytes
Count = Callable[..., int]
COUNTS = pytest.mark.parametrize("count", [costs.step_flops, costs.saved_bytes])


def labels(classes: int = 3) -> Tensor:
    return torch.arange(BATCH) % classes


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def pair() -> tuple[Plain, Plain, Tensor]:
    torch.manual_seed(0)
    return Plain((6, 8, 12)), Plain((3, 4, 5)), torch.randn(BATCH, *IMAGE)


def made(name: str) -> tuple[Distiller, Tensor, dict[str, Tensor]]:
    teacher, student, x = pair()
    if name == "CrossEntropy":
        return CrossEntropy(None, student), x, {}
    if name == "KD":
        return KD(teacher, student), x, {}
    if name == "BlockKD":
        return BlockKD(teacher, student, x), x, {}
    if name == "FCFD":
        return FCFD(teacher, student, x), x, {}
    return CRD(teacher, student, x, n_samples=9, negatives=7), x, {"indices": torch.tensor([0, 3, 8, 5])}


METHODS = pytest.mark.parametrize("name", ["CrossEntropy", "KD", "BlockKD", "FCFD", "CRD"])


def test_step_of_linear_layers_by_hand() -> None:
    forward = 2 * BATCH * (6 * 5 + 5 * 3)
    weights, inputs = forward, 2 * BATCH * 5 * 3  # the batch itself gets no gradient
    assert costs.step_flops(CrossEntropy(None, mlp()), torch.randn(BATCH, 6), labels()) == forward + weights + inputs


def test_the_frozen_teacher_costs_its_forward_pass_once() -> None:
    x = torch.randn(BATCH, 6)
    alone = costs.step_flops(CrossEntropy(None, mlp()), x, labels())
    teacher = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    assert costs.step_flops(KD(teacher, mlp()), x, labels()) == alone + 2 * BATCH * (6 * 7 + 7 * 3)


def test_step_of_a_convolution_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(4 * 4 * 4, 3))
    convolution, linear = 2 * BATCH * (4 * 4) * 4 * (3 * 3 * 3), 2 * BATCH * 64 * 3
    assert costs.step_flops(CrossEntropy(None, network), torch.randn(BATCH, 3, 8, 8), labels()) == (
        2 * convolution + 3 * linear
    )


def test_the_step_of_the_fields_pair() -> None:
    torch.manual_seed(0)
    teacher, student = create_model("resnet32x4"), create_model("resnet8x4")
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([1, 99])
    expected = {  # TFLOP for a batch of 64, benchmarks/flops.py
        0.068: CrossEntropy(None, student),
        0.207: KD(teacher, student),
        0.302: BlockKD(teacher, student, x, stones=[2, 3]),
        0.488: BlockKD(teacher, student, x),
    }
    for teraflops, distiller in expected.items():
        assert costs.step_flops(distiller, x, y) * 32 / 1e12 == pytest.approx(teraflops, abs=0.0005)


def test_saved_by_linear_layers_by_hand() -> None:
    hidden, log_probabilities, weight_of_the_mean = BATCH * 5, BATCH * 3, 1
    x = torch.randn(BATCH, 6)
    assert costs.saved_bytes(CrossEntropy(None, mlp()), x, labels()) == FLOAT * (
        hidden + log_probabilities + weight_of_the_mean
    )


def test_saved_by_convolution_and_batch_norm_by_hand() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

    maps, statistics, pooled, loss = 2 * BATCH * 4 * 8 * 8, 2 * 4, BATCH * 4, BATCH * 3 + 1
    assert costs.saved_bytes(CrossEntropy(None, Network()), torch.randn(BATCH, 3, 8, 8), labels()) == FLOAT * (
        maps + statistics + pooled + loss
    )


def test_half_precision_saves_half() -> None:
    x = torch.randn(BATCH, 6)
    whole, half = (
        costs.saved_bytes(CrossEntropy(None, mlp().to(dtype)), x.to(dtype), labels())
        for dtype in (torch.float64, torch.float32)
    )
    assert whole == 2 * half


def test_the_teacher_without_gradient_saves_nothing_and_stones_save_more() -> None:
    teacher, student, x = pair()
    y, logits = labels(5), BATCH * 5
    alone = costs.saved_bytes(CrossEntropy(None, student), x, y)
    wide = Plain((60, 80, 120))
    with_teacher = [costs.saved_bytes(KD(network, student), x, y) for network in (teacher, wide)]
    assert with_teacher[0] == with_teacher[1]
    assert 0 < with_teacher[0] - alone < 10 * FLOAT * logits
    by_stones = [costs.saved_bytes(BlockKD(teacher, student, x, stones=s), x, y) for s in ([3], [2, 3], [1, 2, 3])]
    assert with_teacher[0] < by_stones[0] < by_stones[1] < by_stones[2]


class Odd(Distiller):
    """Computes something with gradient that the loss has no use for, and a part that is not kept but done again."""

    def __init__(self, wasteful: bool, again: bool) -> None:
        super().__init__(None, mlp())
        self.wasteful, self.again = wasteful, again

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Tensor) -> Losses:
        del context
        if self.wasteful:
            torch.exp(self.student(inputs)).tanh()
        hidden = (lambda x: torch.tanh(torch.exp(self.student(x)))) if self.again else self.student
        logits = checkpoint(hidden, inputs, use_reentrant=False) if self.again else hidden(inputs)
        return Losses.of({"task": F.cross_entropy(logits, targets)}, logits)


def test_only_what_waits_for_the_backward_pass_counts() -> None:
    x, y = torch.randn(BATCH, 6), labels()
    plain = costs.saved_bytes(Odd(wasteful=False, again=False), x, y)
    assert costs.saved_bytes(Odd(wasteful=True, again=False), x, y) == plain
    assert costs.saved_bytes(Odd(wasteful=False, again=True), x, y) == FLOAT * (BATCH * 3 + 1)


@METHODS
@COUNTS
def test_counting_leaves_everything_as_it_was(name: str, count: Count) -> None:
    distiller, x, context = made(name)
    y = labels(5)
    for _ in range(2):  # so that there are gradients, statistics and memories
        distiller(x, y, **context).total.backward()
    twin = twin_of(distiller)
    before = random_states()
    assert count(distiller, x, y, **context) > 0
    assert random_states() == before
    assert_same(distiller, twin)
    for both in (distiller, twin):  # the next step is the one that would have come without counting
        torch.manual_seed(1)
        both(x, y, **context).total.backward()
    assert_same(distiller, twin)


@COUNTS
def test_counts_a_step_of_training_and_gives_the_mode_back(count: Count) -> None:
    distiller, x, _ = made("BlockKD")
    in_training = count(distiller, x, labels(5))
    distiller.eval()
    with torch.no_grad():
        assert count(distiller, x, labels(5)) == in_training
    assert not any(module.training for module in distiller.modules())


@COUNTS
def test_a_count_that_fails_leaves_everything_as_it_was(count: Count) -> None:
    distiller, x, context = made("FCFD")
    twin = twin_of(distiller)
    with pytest.raises(ValueError, match="out of range"):
        count(distiller, x, torch.full((BATCH,), 77), **context)
    assert_same(distiller, twin)


def random_states() -> list[object]:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state(legacy=False))]


def twin_of(distiller: Distiller) -> Distiller:
    twin = copy.deepcopy(distiller)  # which leaves gradients out
    for parameter, original in zip(twin.parameters(), distiller.parameters(), strict=True):
        parameter.grad = None if original.grad is None else original.grad.clone()
    return twin


def assert_same(one: Distiller, other: Distiller) -> None:
    for mine, theirs in zip(everything(one), everything(other), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert torch.equal(mine, theirs)
    assert [module.training for module in one.modules()] == [module.training for module in other.modules()]


def everything(distiller: Distiller) -> list[Tensor | None]:
    teacher = distiller.teacher
    teachers = [] if teacher is None else list(teacher.state_dict().values())
    gradients = [parameter.grad for parameter in distiller.parameters()]
    return [*distiller.state_dict().values(), *teachers, *gradients]
