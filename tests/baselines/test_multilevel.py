"""Laws of multi-level logit distillation."""

import copy
from collections.abc import Callable

import jaxtyping
import pytest
import torch
from torch import Tensor

from blockkd.baselines.multilevel import MLKD, MultiLevel, batch_correlation, class_correlation
from blockkd.block_kd import BlockKD
from blockkd.objectives import cross_entropy
from tests import networks
from tests.oracles import multilevel as oracle

Loss = Callable[[Tensor, Tensor, float], Tensor]


def logits(batch: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * classes)
    ours, theirs = (4 * torch.randn(batch, classes, generator=generator, dtype=dtype) for _ in range(2))
    return ours.requires_grad_(), theirs, torch.randint(classes, (batch,), generator=generator)


@pytest.mark.parametrize(("ours", "plain"), [
    (batch_correlation, oracle.batch_level), (class_correlation, oracle.class_level)
])  # fmt: skip
@pytest.mark.parametrize(("batch", "classes"), [(1, 3), (4, 2), (3, 7)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_each_level_is_its_equation(ours: Loss, plain: Loss, batch: int, classes: int, temperature: float) -> None:
    learner, target, _ = logits(batch, classes)
    value, expected = ours(learner, target, temperature), plain(learner, target, temperature)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, learner)[0] for loss in (value, expected)))


@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 0.0), (0.0, 0.3, 4.0)])
def test_the_distance_is_the_sum_over_levels_and_temperatures(
    standardized: bool, weights: tuple[float, float, float]
) -> None:
    learner, target, labels = logits(3, 5)
    temperatures = (2.0, 4.0, 5.0)
    distance = MultiLevel(*weights, temperatures=temperatures, standardized=standardized)
    value = distance(learner, target, labels)
    expected = oracle.loss(learner, target, weights, temperatures, standardized)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, learner)[0] for loss in (value, expected)))


def test_equals_are_at_distance_zero_and_shifts_and_orders_do_not_matter() -> None:
    learner, target, labels = logits(6, 5)
    distance = MultiLevel()
    same = distance(learner, learner.detach(), labels)
    torch.testing.assert_close(same, torch.zeros_like(same))
    value, order = distance(learner, target, labels), torch.randperm(6)
    torch.testing.assert_close(distance(learner + 3, target - 2, labels), value)
    torch.testing.assert_close(distance(learner[order], target[order], labels[order]), value)


@pytest.mark.parametrize("level", [batch_correlation, class_correlation])
def test_gradcheck(level: Loss) -> None:
    learner, target, _ = logits(3, 4)
    assert torch.autograd.gradcheck(lambda z: level(z, target, 2.0), (learner,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    learner, target, labels = logits(4, 5, dtype)
    value = MultiLevel()(learner, target, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, MultiLevel()(learner.float(), target.float(), labels))


def test_the_method_weighs_labels_and_levels() -> None:
    torch.manual_seed(0)
    teacher, student = networks.Plain((6, 8, 12)), networks.Plain((3, 4, 5))
    x, y = torch.randn(4, *networks.IMAGE), torch.tensor([0, 3, 4, 1])
    before = copy.deepcopy(teacher.state_dict())
    distiller = MLKD(teacher, student)
    losses = distiller(x, y)
    losses.total.backward()
    target = teacher(x)
    torch.testing.assert_close(losses.terms["task/student"].detach(), 0.1 * cross_entropy(losses.logits, y))
    expected = oracle.loss(losses.logits, target, (1.0, 1.0, 1.0), (2.0, 3.0, 4.0, 5.0, 6.0), False)
    torch.testing.assert_close(losses.terms["distill/student"].detach(), 0.9 * expected)
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_it_is_a_logit_distance_for_block_kd_too() -> None:
    torch.manual_seed(0)
    teacher, student = networks.Plain((6, 8, 12)), networks.Plain((3, 4, 5))
    x, y = torch.randn(4, *networks.IMAGE), torch.tensor([0, 3, 4, 1])
    losses = BlockKD(teacher, student, x, distance=MultiLevel(), alpha=0.0, beta=1.0, gamma=0.0)(x, y)
    expected = MultiLevel()(losses.logits, teacher(x), y)
    torch.testing.assert_close(losses.terms["distill/student"].detach(), expected)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_temperatures_must_be_above_zero(wrong: float) -> None:
    learner, target, _ = logits(3, 4)
    for level in (batch_correlation, class_correlation):
        with pytest.raises(ValueError, match="temperature is"):
            level(learner, target, wrong)
    with pytest.raises(ValueError, match="temperature is"):
        MultiLevel(temperatures=(2.0, wrong))


@pytest.mark.parametrize("level", [batch_correlation, class_correlation])
def test_logits_of_other_shapes_are_refused(level: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="differ in shape"):
        level(torch.zeros(3, 4), torch.zeros(3, 5), 2.0)


def test_there_must_be_a_temperature() -> None:
    with pytest.raises(ValueError, match="temperatures is empty"):
        MultiLevel(temperatures=())
