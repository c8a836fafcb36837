"""Laws of CAT-KD."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blockkd.baselines.catkd import CATKD, class_activation_maps, class_attention
from blockkd.baselines.heads import Head, cut_before_pooling
from tests.baselines.laws import CIFAR_PAIRS, assert_full_precision, check_step, field_pair, tiny
from tests.networks import Plain
from tests.oracles import catkd as oracle


@pytest.mark.parametrize(("teacher", "student"), CIFAR_PAIRS)
def test_a_step_on_the_fields_pairs(teacher: str, student: str) -> None:
    theirs, ours, x, y = field_pair(teacher, student)
    check_step(CATKD(theirs, ours, x), x, y)


def test_a_step_on_tiny_networks() -> None:
    teacher, student, x, y = tiny()
    check_step(CATKD(teacher, student, x), x, y)


@pytest.mark.parametrize(("side", "normalize"), [(1, True), (2, True), (2, False), (4, False)])
def test_class_attention_is_that_of_the_equations(side: int, normalize: bool) -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    teacher, their_weight = torch.randn(2, 6, 8, 8, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    ours = class_activation_maps(student, weight, side), class_activation_maps(teacher, their_weight, side)
    loss = class_attention(*ours, normalize=normalize)
    expected = oracle.class_attention(student, weight, teacher, their_weight, side, normalize)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(*(torch.autograd.grad(value, [student, weight]) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("resolution", "normalize"), [(2, True), (1, False)])
def test_cat_kd_is_the_sum_of_its_equations(resolution: int, normalize: bool) -> None:
    teacher, student, x, y = tiny()
    options = {"resolution": resolution, "normalize": normalize}
    losses = CATKD(teacher, student, x, alpha=0.5, beta=30.0, **options).train()(x, y)  # type: ignore[arg-type]
    twin = copy.deepcopy(student).train()
    torch.testing.assert_close(losses.terms["task/student"], 0.5 * F.cross_entropy(twin(x), y))
    ours, theirs = (nn.Sequential(*network.stages)(x) for network in (twin, teacher))
    weights = student.head.weight, teacher.head.weight
    expected = oracle.class_attention(ours, weights[0], theirs, weights[1], resolution, normalize)
    torch.testing.assert_close(losses.terms["feature/cam"], 30 * expected)
    assert losses.terms.keys() == {"task/student", "feature/cam"}


def test_class_attention_does_not_see_the_size_of_maps_and_vanishes_for_equals() -> None:
    torch.manual_seed(0)
    maps, others = torch.randn(2, 5, 2, 2, dtype=torch.float64), torch.randn(2, 5, 2, 2, dtype=torch.float64)
    scales = torch.rand(2, 5, 1, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(class_attention(scales * maps, others), class_attention(maps, others))
    assert class_attention(maps, 3 * maps) < 1e-12
    assert class_attention(2 * maps, maps, normalize=False) > 0.1


def test_the_maps_average_to_the_logits_without_bias() -> None:
    teacher, _, x, _ = tiny()
    head = Head(teacher, example=x)
    (feature,), logits = cut_before_pooling(teacher, head, x).eval().run(x)
    linear = head.linear(teacher)
    maps = class_activation_maps(feature, linear.weight, 1)
    torch.testing.assert_close(maps.flatten(1) + linear.bias, logits)


def test_maps_are_computed_in_full_precision() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 8)

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ours, theirs = (class_activation_maps(maps, weight.to(a), 2) for maps in (a, b))
        return class_attention(ours, theirs)

    weight = weight.bfloat16().float()
    assert_full_precision(loss, torch.randn(3, 8, 4, 4), torch.randn(3, 8, 4, 4))
    assert loss(300 * torch.randn(2, 8, 4, 4).half(), torch.randn(2, 8, 4, 4).half()).isfinite()


def test_bad_options_are_told_so() -> None:
    teacher, student, x, _ = tiny()
    with pytest.raises(ValueError, match="resolution is 0"):
        CATKD(teacher, student, x, resolution=0)
    with pytest.raises(ValueError, match="the student tells 7 classes apart and the teacher 5"):
        CATKD(teacher, Plain(classes=7).double(), x)
