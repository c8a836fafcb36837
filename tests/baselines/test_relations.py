"""SP, NST, PKT and RKD: their losses against the equations, their symmetries, and the laws of a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockkd.baselines.logits import KD
from blockkd.baselines.relations import (
    NST,
    PKT,
    RKD,
    SP,
    angle_loss,
    distance_loss,
    neighbourhood_loss,
    selectivity_loss,
    similarity_loss,
)
from blockkd.distances import KL
from blockkd.distiller import Distiller
from tests.baselines.laws import (
    CIFAR_PAIRS,
    Loss,
    assert_equals_oracle,
    assert_full_precision,
    assert_lawful_step,
    cifar_pair,
    normal,
    tiny,
)
from tests.networks import IMAGE, Plain, Tokens, perceptron
from tests.oracles import relations as oracle

OF_EXAMPLES: dict[str, tuple[Loss, Loss]] = {
    "SP": (similarity_loss, oracle.similarity),
    "PKT": (neighbourhood_loss, oracle.neighbourhoods),
    "RKD-D": (distance_loss, oracle.distances),
    "RKD-A": (angle_loss, oracle.angles),
}
METHODS: dict[str, Callable[..., Distiller]] = {"SP": SP, "NST": NST, "PKT": PKT, "RKD": RKD}
BLOCKWISE = ("SP", "NST")


# The losses against the equations.


@pytest.mark.parametrize("name", OF_EXAMPLES)
@pytest.mark.parametrize("sizes", [(3, 2, 2), (4, 5, 3), (6, 3, 8)])
def test_relations_of_examples_equal_their_oracles(name: str, sizes: tuple[int, int, int]) -> None:
    batch, d, e = sizes
    assert_equals_oracle(*OF_EXAMPLES[name], normal(batch, d), normal(batch, e, seed=1))


def test_far_distances_reach_the_linear_part_of_the_huber_loss() -> None:
    teacher = torch.cat([normal(5, 3), 100 + normal(1, 3)])
    assert_equals_oracle(*OF_EXAMPLES["RKD-D"], normal(6, 3, seed=1), teacher)


def test_similarity_takes_features_of_any_shape() -> None:
    assert_equals_oracle(*OF_EXAMPLES["SP"], normal(3, 2, 4, 4), normal(3, 5, 7, seed=1))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 2, 1), (2, 3, 4, 2, 3)])
def test_selectivity_equals_its_oracle(sizes: tuple[int, ...]) -> None:
    batch, c, d, *grid = sizes
    assert_equals_oracle(selectivity_loss, oracle.selectivity, normal(batch, c, *grid), normal(batch, d, *grid, seed=1))


# Laws of the losses.


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_equal_features_cost_nothing_turned_or_not_and_others_do(name: str) -> None:
    loss, _ = OF_EXAMPLES[name]
    x, turn = normal(5, 4), torch.linalg.qr(normal(4, 4, seed=1))[0]
    assert loss(x, x).abs() < 1e-12
    assert loss(x @ turn, x).abs() < 1e-12
    assert loss(normal(5, 4, seed=2), x) > 1e-3


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_turning_scaling_and_the_order_of_examples_change_nothing(name: str) -> None:
    loss, _ = OF_EXAMPLES[name]
    student, teacher, turn = normal(5, 4), normal(5, 6, seed=1), torch.linalg.qr(normal(4, 4, seed=2))[0]
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(loss((7 * student @ turn)[order], (0.1 * teacher)[order]), loss(student, teacher))


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_which_relations_see_where_zero_is_and_the_length_of_each_example(name: str) -> None:
    loss, _ = OF_EXAMPLES[name]
    student, teacher = normal(5, 4), normal(5, 6, seed=1)
    value = loss(student, teacher)
    moved = loss(student + 3, teacher - 1)
    stretched = loss(student * torch.arange(1, 6).double()[:, None], teacher)
    assert torch.isclose(moved, value) == name.startswith("RKD")
    assert torch.isclose(stretched, value) == (name == "PKT")


def test_selectivity_sees_neither_scale_nor_sign_nor_order_of_channels() -> None:
    student, teacher = normal(2, 3, 2, 3), normal(2, 4, 2, 3, seed=1)
    value = selectivity_loss(student, teacher)
    scale = torch.tensor([0.1, -3.0, 20.0]).double()[:, None, None]
    torch.testing.assert_close(selectivity_loss(scale * student, -teacher[:, [3, 1, 0, 2]]), value)
    assert value > 0.01
    assert selectivity_loss(student, student[:, [2, 0, 1]]).abs() < 1e-12


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_one_example_has_no_relations(name: str) -> None:
    loss, _ = OF_EXAMPLES[name]
    student = normal(1, 4).requires_grad_()
    value = loss(student, normal(1, 6, seed=1))
    (gradient,) = torch.autograd.grad(value, student)
    assert value == 0
    torch.testing.assert_close(gradient, torch.zeros(1, 4).double(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", OF_EXAMPLES)
@pytest.mark.parametrize("student", [torch.zeros(4, 3), torch.ones(4, 3), torch.eye(4)[:, :3]], ids=["0", "1", "eye"])
def test_examples_that_coincide_or_vanish_have_finite_gradients(name: str, student: Tensor) -> None:
    loss, _ = OF_EXAMPLES[name]
    student = student.clone().requires_grad_()
    value = loss(student, normal(4, 5).float())
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.abs().max() < 100


def test_dead_channels_have_finite_gradients() -> None:
    student = torch.cat([torch.zeros(2, 1, 2, 2), normal(2, 2, 2, 2).float()], dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(selectivity_loss(student, normal(2, 3, 2, 2, seed=1).float()), student)
    assert gradient.abs().max() < 100


def test_opposite_embeddings_have_a_finite_divergence() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert neighbourhood_loss(student, normal(3, 4).float()).isfinite()
    assert neighbourhood_loss(normal(3, 4).float(), student).isfinite()


@pytest.mark.parametrize("name", [*OF_EXAMPLES, "NST"])
def test_losses_are_computed_in_full_precision(name: str) -> None:
    loss, shape = (selectivity_loss, (4, 8, 3, 3)) if name == "NST" else (OF_EXAMPLES[name][0], (6, 16))
    assert_full_precision(loss, normal(*shape), normal(*shape, seed=1))
    assert loss(normal(*shape).half() * 300, normal(*shape, seed=1).half()).isfinite()


# The methods.


@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_tiny_networks(name: str) -> None:
    teacher, student, x, y = tiny()
    distiller = METHODS[name](teacher, student)
    terms = {
        "SP": ["feature/block_3"],
        "NST": ["feature/block_1", "feature/block_2", "feature/block_3"],
        "PKT": ["feature/neighbours"],
        "RKD": ["feature/distances", "feature/angles"],
    }
    assert list(distiller(x, y).terms) == ["task/student", *terms[name]]
    assert_lawful_step(distiller, x, y)
    assert set(distiller.state_dict()) == {f"student.{key}" for key in student.state_dict()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pair", CIFAR_PAIRS, ids="-".join)
def test_a_step_on_the_field_s_pairs(name: str, pair: tuple[str, str]) -> None:
    teacher, student, theirs, ours = cifar_pair(*pair)
    blocks: dict[str, Any] = {"teacher_blocks": theirs, "student_blocks": ours} if name in BLOCKWISE else {}
    distiller = METHODS[name](teacher, student, **blocks)
    assert_lawful_step(distiller, torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 1, 1]))


def test_what_each_method_compares() -> None:
    """The whole loss from the networks' features, by the equations."""
    teacher, student, x, y = tiny()
    options: dict[str, dict[str, Any]] = {
        "RKD": {"distance_weight": 2.0, "angle_weight": 5.0},
        "NST": {"stages": [2]},
        "SP": {"stages": [1, 3]},
    }
    features = []
    for network in (student, teacher.eval()):
        value, each = x, []
        for stage in network.stages:
            value = stage(value)
            each.append(value.detach())
        features.append([*each, value.mean((2, 3)).detach()])
    ours, theirs = features
    expected = {
        "SP": {f"block_{i}": oracle.similarity(ours[i - 1], theirs[i - 1]) for i in (1, 3)},
        "NST": {"block_2": oracle.selectivity(ours[1], theirs[1])},
        "PKT": {"neighbours": oracle.neighbourhoods(ours[3], theirs[3])},
        "RKD": {
            "distances": 2 * oracle.distances(ours[3], theirs[3]),
            "angles": 5 * oracle.angles(ours[3], theirs[3]),
        },
    }
    for name, make in METHODS.items():
        terms = dict(make(teacher, student, beta=3.0, alpha=0.5, **options.get(name, {})).train()(x, y).terms)
        terms.pop("task/student")
        assert set(terms) == {f"feature/{term}" for term in expected[name]}
        for term, loss in expected[name].items():
            torch.testing.assert_close(terms[f"feature/{term}"], 3 * loss, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_without_its_own_weight_each_is_plain_kd(name: str) -> None:
    teacher, student, x, y = tiny()
    distiller = METHODS[name](teacher, student, alpha=0.3, beta=0.0, logit_weight=0.7, distance=KL(2.0))
    expected = KD(teacher, student, 0.3, 0.7, KL(2.0))(x, y)
    assert list(distiller(x, y).terms) == list(expected.terms)
    torch.testing.assert_close(distiller(x, y).total, expected.total)


@pytest.mark.parametrize("name", METHODS)
def test_networks_in_half_precision(name: str) -> None:
    teacher, student, x, y = tiny(torch.bfloat16)
    distiller = METHODS[name](teacher, student)
    assert {term.dtype for term in distiller(x, y).terms.values()} == {torch.float32}
    assert_lawful_step(distiller, x, y)


@pytest.mark.parametrize(("name", "fits"), [("SP", True), ("PKT", True), ("RKD", True), ("NST", False)])
def test_vectors_have_no_places(name: str, fits: bool) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 4, 4), torch.tensor([0, 3, 4, 1])
    networks = perceptron(12), perceptron(8)
    if fits:
        assert_lawful_step(METHODS[name](*networks), x, y)
    else:
        with pytest.raises(ValueError, match="NST compares places"):
            METHODS[name](*networks, x)


@pytest.mark.parametrize("name", METHODS)
def test_tokens_are_compared_too(name: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, *IMAGE), torch.tensor([0, 3, 1, 1])
    cut: dict[str, Any] = {"n_blocks": 2} if name in BLOCKWISE else {}
    assert_lawful_step(METHODS[name](Plain(), Tokens(8), **cut), x, y)


# Where the embedding is.


class TwoHeads(nn.Module):
    """A second linear layer, registered last, that has no part in the logits."""

    def __init__(self, extra: nn.Module) -> None:
        super().__init__()
        self.body, self.head, self.extra = nn.Linear(6, 4), nn.Linear(4, 5), extra

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def test_the_head_can_be_named() -> None:
    torch.manual_seed(0)
    teacher, student = TwoHeads(nn.Linear(9, 9)), nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 5))
    x, y = torch.randn(4, 6), torch.tensor([0, 3, 4, 1])
    with pytest.raises(
        ValueError, match=r"layer 'extra' of TwoHeads was expected to run once, .* ran on batches of \[\]"
    ):
        PKT(teacher, student)(x, y)
    distiller = PKT(teacher, student, teacher_head="head")
    expected = neighbourhood_loss(student[0](x), teacher.body(x).relu())
    torch.testing.assert_close(distiller(x, y).terms["feature/neighbours"], 30000 * expected)
    assert_lawful_step(distiller, x, y)
    assert not any(module._forward_pre_hooks for module in (*teacher.modules(), *student.modules()))


def test_networks_without_a_head_are_named() -> None:
    linear = nn.Linear(6, 5)
    with pytest.raises(ValueError, match=r"Flatten has no linear layer, .*name the layer that gives the logits"):
        RKD(nn.Flatten(), linear)
    with pytest.raises(ValueError, match=r"Sequential has no layer 'fc'; its linear layers are \['1'\]"):
        RKD(nn.Sequential(nn.Flatten(), nn.Linear(6, 5)), linear, teacher_head="fc")
    wide = nn.Sequential(nn.Linear(6, 8), nn.AdaptiveAvgPool1d(5))
    with pytest.raises(
        ValueError, match=r"layer '0', the last linear one of Sequential, gives 8 values, but there are 5"
    ):
        RKD(wide, linear)(torch.randn(4, 6), torch.tensor([0, 3, 4, 1]))


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (0.0, 0.0)])
def test_weights_of_rkd_that_teach_nothing_are_named(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected zero or more, and one above zero"):
        RKD(nn.Linear(6, 5), nn.Linear(6, 5), distance_weight=weights[0], angle_weight=weights[1])
