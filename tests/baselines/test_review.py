"""Laws of ReviewKD."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blockkd.baselines.review import AttentionFusion, ReviewKD, hierarchical_context
from tests import networks
from tests.baselines.laws import CIFAR_PAIRS, ChannelsLast, TwoLayerHead, check_step, field_pair, tiny
from tests.networks import IMAGE
from tests.oracles import review as oracle


@pytest.mark.parametrize(("teacher", "student"), CIFAR_PAIRS)
def test_a_step_on_the_fields_pairs(teacher: str, student: str) -> None:
    theirs, ours, x, y = field_pair(teacher, student)
    check_step(ReviewKD(theirs, ours, x), x, y)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_hierarchical_context_is_that_of_the_equations(side: int) -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, side, side, dtype=torch.float64)
    values = hierarchical_context(student, teacher), oracle.context(student, teacher)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in values))


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (2, 2)])
def test_fusion_is_that_of_the_equations(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = AttentionFusion(3, 5, 4, fuses=True).double()
    feature, deeper = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 5, 2, 2).double()
    for ours, theirs in zip(module(feature, deeper, grid), oracle.fused(module, feature, deeper, grid), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_is_that_of_the_equations() -> None:
    teacher, student, x, y = tiny()
    distiller = ReviewKD(teacher, student, x, alpha=0.0, beta=0.7, warmup_epochs=0)
    twin = copy.deepcopy(distiller)
    losses = distiller(x, y)
    losses.total.backward()

    features, _ = twin.student_features(x)
    theirs, _ = twin.teacher_features(x)
    # What the linear classifier gets, by hand: the last stage's mean; of the teacher's, after its ReLU.
    ours = [*features, features[-1].mean((2, 3), keepdim=True)]
    targets = [*theirs, theirs[-1].relu().mean((2, 3), keepdim=True)]
    assert all(bool((target < 0).any()) for target in theirs)
    assert not any(bool((feature < 0).any()) for feature in features)
    expected = 0.7 * oracle.loss(list(twin.fusions), ours, targets)
    expected.backward()
    torch.testing.assert_close(losses.total, expected)
    for a, b in zip(distiller.parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_equal_features_cost_nothing_and_order_plays_no_part() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 2, 8, 8).double(), torch.randn(3, 2, 8, 8).double()
    assert hierarchical_context(a, a) == 0
    torch.testing.assert_close(hierarchical_context(a[[2, 0, 1]], b[[2, 0, 1]]), hierarchical_context(a, b))
    shifted = hierarchical_context(a + 3, a)  # a difference that is the same everywhere looks so at every size
    torch.testing.assert_close(shifted, torch.tensor(9.0).double())


def test_half_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    a, b = (300 * torch.randn(2, 3, 8, 8)).half(), torch.randn(2, 3, 8, 8).half()
    assert hierarchical_context(a, b).dtype == torch.float32
    torch.testing.assert_close(hierarchical_context(a, b), hierarchical_context(a.float(), b.float()))


def test_the_loss_grows_over_the_first_epochs() -> None:
    teacher, student, x, y = tiny()
    distiller = ReviewKD(teacher, student, x).eval()
    full, found = {}, {}
    for epoch in (0, 9, 19, 20, 200):
        distiller.set_epoch(epoch)
        losses = distiller(x, y)
        found[epoch] = float(losses.terms["feature/review"].detach())
        full[epoch] = float(losses.terms["task/student"].detach())
    assert len(set(full.values())) == 1
    shares = {epoch: value / found[200] for epoch, value in found.items()}
    assert shares == pytest.approx({0: 0.05, 9: 0.5, 19: 1.0, 20: 1.0, 200: 1.0})


def test_the_task_is_plain_cross_entropy() -> None:
    teacher, student, x, y = tiny()
    losses = ReviewKD(teacher, student, x, alpha=0.5, beta=0.0).eval()(x, y)
    assert losses.terms.keys() == {"task/student"}
    torch.testing.assert_close(losses.total, 0.5 * F.cross_entropy(student(x), y))


def test_another_resolution_and_channels_last() -> None:
    x, y = torch.rand(4, *IMAGE), torch.tensor([0, 1, 2, 3])
    distiller = ReviewKD(networks.Plain((6, 8, 12)), networks.Plain(), x)
    assert distiller(torch.rand(4, 3, 32, 32), y).total.isfinite()
    check_step(ReviewKD(ChannelsLast(6), ChannelsLast(4), x), x, y)


def test_networks_that_do_not_fit_are_told_so() -> None:
    x = torch.rand(4, *IMAGE)
    with pytest.raises(ValueError, match="ReviewKD needs maps, but Tokens gives 17×16 LD"):
        ReviewKD(networks.Tokens(), networks.Tokens(), x)
    with pytest.raises(ValueError, match="not the output of one linear layer"):
        ReviewKD(TwoLayerHead(), networks.Plain(), x)
    with pytest.raises(ValueError, match="warmup_epochs is -1"):
        ReviewKD(networks.Plain(), networks.Plain(), x, warmup_epochs=-1)


def test_nothing_of_it_is_in_the_student() -> None:
    teacher, student, x, _ = tiny()
    names = list(student.state_dict())
    distiller = ReviewKD(teacher, student, x)
    assert list(distiller.student.state_dict()) == names
    assert isinstance(distiller.fusions, nn.ModuleList)
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "fusions"}
