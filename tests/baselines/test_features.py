"""FitNet, AT and VID: their losses against the equations, and the laws of a step."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from blockkd.baselines.block_features import StageDistiller, chosen_stages, on_one_grid
from blockkd.baselines.features import AT, VID, FitNet, Gaussian, attention_loss, gaussian_loss, hint_loss
from blockkd.baselines.logits import KD
from blockkd.baselines.mixture import Mixture
from blockkd.baselines.numerics import products, unit
from blockkd.distances import KL
from blockkd.features import Feature
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
from tests.oracles import features as oracle

# The losses against the equations.


@pytest.mark.parametrize("shape", [(1, 2), (3, 4), (2, 3, 2, 2), (2, 3, 4)])
def test_hint_equals_its_oracle(shape: tuple[int, ...]) -> None:
    assert_equals_oracle(hint_loss, oracle.hint, normal(*shape), normal(*shape, seed=1))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2, 1), (2, 3, 4, 2, 3), (3, 5, 2, 3, 3)])
def test_attention_equals_its_oracle(p: float, sizes: tuple[int, ...]) -> None:
    batch, c, d, *grid = sizes
    student, teacher = normal(batch, c, *grid), normal(batch, d, *grid, seed=1)
    assert_equals_oracle(lambda s, t: attention_loss(s, t, p), lambda s, t: oracle.attention(s, t, p), student, teacher)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 2, 2)])
def test_gaussian_loss_equals_its_oracle(shape: tuple[int, ...]) -> None:
    variance = normal(shape[1], seed=2).exp()
    assert_equals_oracle(gaussian_loss, oracle.gaussian, normal(*shape), variance, normal(*shape, seed=1))


def test_gaussian_equals_its_oracle_and_starts_at_the_variance_asked_for() -> None:
    torch.manual_seed(0)
    module = Gaussian(3, 4, initial_variance=2.5).double()
    torch.testing.assert_close(module(normal(1, 3, 1, 1))[1], torch.full((4,), 2.5).double(), rtol=1e-6, atol=0)
    module.raw_variance.data.copy_(normal(4, seed=3))
    maps = normal(2, 3, 2, 2)
    weights = [layer.weight for layer in module.mean if isinstance(layer, nn.Conv2d)]
    for mine, theirs in zip(module(maps), oracle.gaussian_of(maps, weights, module.raw_variance), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_larger_grid_is_averaged_down() -> None:
    fine, coarse = normal(2, 3, 4, 6), normal(2, 5, 2, 3, seed=1)
    left, right = on_one_grid(fine, Feature((3, 4, 6), "CHW"), coarse, Feature((5, 2, 3), "CHW"))
    torch.testing.assert_close(left, oracle.pooled(fine, 2, 3))
    assert torch.equal(right, coarse)
    right, left = on_one_grid(coarse, Feature((5, 2, 3), "CHW"), fine, Feature((3, 4, 6), "CHW"))
    torch.testing.assert_close(left, oracle.pooled(fine, 2, 3))


def test_channels_last_and_tokens_are_maps_too() -> None:
    maps = normal(2, 3, 4, 4)
    last, tokens = maps.permute(0, 2, 3, 1), maps.flatten(2).mT
    with_class_token = torch.cat([normal(2, 1, 3), tokens], dim=1)
    looks = Feature((3, 4, 4), "CHW")
    for other, feature in [
        (last, Feature((4, 4, 3), "HWC")),
        (tokens, Feature((16, 3), "LD")),
        (with_class_token, Feature((17, 3), "LD")),
    ]:
        assert torch.equal(on_one_grid(other, feature, maps, looks)[0], maps)
    oblong = Feature((16, 3), "LD", (2, 8))
    left, right = on_one_grid(tokens, oblong, normal(2, 5, 2, 8), Feature((5, 2, 8), "CHW"))
    assert torch.equal(left, maps.reshape(2, 3, 2, 8))
    series = normal(2, 3, 16), normal(2, 5, 8)
    left, right = on_one_grid(series[0], Feature((3, 16), "CL"), series[1], Feature((5, 8), "CL"))
    torch.testing.assert_close(left, oracle.pooled(series[0][:, :, None], 1, 8))
    assert torch.equal(right[:, :, 0], series[1])
    # Two sequences of one length keep every token, whatever its meaning.
    left, right = on_one_grid(with_class_token, feature, with_class_token, feature)
    assert torch.equal(left[..., 0].mT, with_class_token)
    assert torch.equal(right, left)


# Laws of the losses.


def test_attention_sees_neither_scale_nor_sign_nor_order_of_channels() -> None:
    student, teacher = normal(3, 4, 2, 3), normal(3, 5, 2, 3, seed=1)
    value = attention_loss(student, teacher)
    scale = torch.tensor([0.1, 3.0, -20.0]).double()[:, None, None, None]
    torch.testing.assert_close(attention_loss(scale * student, 7 * teacher[:, [4, 2, 0, 1, 3]]), value)
    assert attention_loss(student, -2 * student) < 1e-30 < value


def test_attention_of_a_dead_feature_has_a_finite_gradient() -> None:
    student = torch.zeros(2, 3, 2, 2).requires_grad_()
    for p in (1.0, 2.0):
        (gradient,) = torch.autograd.grad(attention_loss(student, normal(2, 3, 2, 2).float(), p), student)
        assert torch.isfinite(gradient).all()


def test_the_likeliest_feature_is_the_mean_and_the_likeliest_variance_the_mean_square() -> None:
    target, mean = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1)
    assert gaussian_loss(target, torch.ones(2).double(), target) == 0
    best = (target - mean).square().mean((0, 2, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(gaussian_loss(mean, best, target), best)
    torch.testing.assert_close(gradient, torch.zeros(2).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [hint_loss, attention_loss])
def test_losses_are_computed_in_full_precision(loss: Loss) -> None:
    assert_full_precision(loss, normal(4, 8, 3, 3), normal(4, 8, 3, 3, seed=1))
    assert loss(normal(4, 8, 3, 3).half() * 300, normal(4, 8, 3, 3).half()).isfinite()


def test_unit_vectors_have_length_one_and_zero_stays_zero() -> None:
    vectors = torch.cat([1e-8 * normal(1, 5), 1e8 * normal(1, 5), torch.zeros(1, 5).double()]).float().requires_grad_()
    torch.testing.assert_close(unit(vectors).square().sum(1), torch.tensor([1.0, 1.0, 0.0]))
    (gradient,) = torch.autograd.grad(unit(vectors)[2].sum(), vectors)
    assert torch.equal(gradient[2], torch.ones(5))


def test_products_are_not_multiplied_in_half_precision() -> None:
    left, right = normal(2, 3, 4).float(), normal(2, 5, 4, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        got = products(left, right)
    torch.testing.assert_close(got, torch.einsum("bnd,bmd->bnm", left, right))


# The methods.

METHODS: dict[str, Callable[..., StageDistiller]] = {"FitNet": FitNet, "AT": AT, "VID": VID}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_tiny_networks(name: str) -> None:
    teacher, student, x, y = tiny()
    distiller = METHODS[name](teacher, student, x)
    losses = distiller(x, y)
    stages = {"FitNet": [2]}.get(name, [1, 2, 3])
    assert list(losses.terms) == ["task/student", *(f"feature/block_{i}" for i in stages)]
    assert_lawful_step(distiller, x, y)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pair", CIFAR_PAIRS, ids="-".join)
def test_a_step_on_the_field_s_pairs(name: str, pair: tuple[str, str]) -> None:
    teacher, student, theirs, ours = cifar_pair(*pair)
    distiller = METHODS[name](teacher, student, teacher_blocks=theirs, student_blocks=ours)
    assert_lawful_step(distiller, torch.randn(2, 3, 32, 32), torch.tensor([3, 7]))


COMPARED: list[tuple[str, dict[str, Any], Loss]] = [
    ("FitNet", {"stages": [1, 3]}, lambda s, t, regressor: oracle.hint(regressor(s), t)),
    ("AT", {"p": 1.5}, lambda s, t, _: oracle.attention(s, t, 1.5)),
    ("VID", {"stages": "last"}, lambda s, t, module: oracle.gaussian(module(s)[0], module(s)[1], t)),
]


@pytest.mark.parametrize(("name", "options", "expected"), COMPARED, ids=[name for name, *_ in COMPARED])
def test_what_each_method_compares(name: str, options: dict[str, Any], expected: Loss) -> None:
    """The whole loss from the features of the cut networks, by the equations."""
    teacher, student, x, y = tiny()
    distiller = METHODS[name](teacher, student, x, beta=3.0, alpha=0.5, **options).eval()
    ours, theirs = distiller.student_blocks.run(x)[0], distiller.teacher_blocks.run(x)[0]
    terms = distiller(x, y).terms
    torch.testing.assert_close(terms["task/student"], 0.5 * nn.functional.cross_entropy(student(x), y))
    for i in distiller.stages:
        connector = distiller.connectors[str(i)] if name != "AT" else None
        value = expected(ours[i - 1], theirs[i - 1], connector)
        torch.testing.assert_close(terms[f"feature/block_{i}"], 3 * value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_without_its_own_weight_each_is_plain_kd(name: str) -> None:
    teacher, student, x, y = tiny()
    distiller = METHODS[name](teacher, student, x, alpha=0.3, beta=0.0, logit_weight=0.7, distance=KL(2.0))
    expected = KD(teacher, student, 0.3, 0.7, KL(2.0))(x, y)
    losses = distiller(x, y)
    assert list(losses.terms) == list(expected.terms)
    torch.testing.assert_close(losses.total, expected.total)


@pytest.mark.parametrize("name", METHODS)
def test_the_state_comes_back_and_the_teacher_is_not_in_it(name: str) -> None:
    teacher, student, x, y = tiny()
    distiller = METHODS[name](teacher, student, x)
    names = set(distiller.state_dict())
    assert {each for each in names if each.startswith("student.")} == {f"student.{k}" for k in student.state_dict()}
    assert all(each.startswith(("student.", "connectors.")) for each in names)
    assert any(each.startswith("connectors.") for each in names) == (name != "AT")
    twin = METHODS[name](teacher, Plain((3, 4, 5)).double(), x)
    assert not torch.equal(twin.eval()(x, y).total, distiller.eval()(x, y).total)
    twin.load_state_dict(distiller.state_dict())
    assert torch.equal(twin.eval()(x, y).total, distiller.eval()(x, y).total)


@pytest.mark.parametrize("name", METHODS)
def test_another_resolution_is_adapted_to(name: str) -> None:
    teacher, student, x, y = tiny()
    distiller = METHODS[name](teacher, student, x)
    assert_lawful_step(distiller, torch.randn(4, 3, 24, 32).double(), y)


def test_tokens_are_compared_too() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, *IMAGE), torch.tensor([0, 3])
    for make in METHODS.values():
        assert_lawful_step(make(Tokens(16), Tokens(8), x, n_blocks=2), x, y)
        assert_lawful_step(make(Plain(), Tokens(8), x, n_blocks=2), x, y)


def test_tokens_of_another_resolution_lie_on_the_grid_they_have() -> None:
    distiller = AT(Plain(), Tokens(8), torch.randn(2, *IMAGE), n_blocks=2)
    tokens, maps = normal(2, 64, 8), normal(2, 4, 32, 32)
    with_class_token = torch.cat([normal(2, 1, 8), tokens], dim=1)
    ours, theirs = distiller.maps(1, with_class_token, maps)
    assert torch.equal(ours.flatten(2).mT, tokens)
    torch.testing.assert_close(theirs, oracle.pooled(maps, 8, 8))


@pytest.mark.parametrize("name", METHODS)
def test_networks_in_half_precision(name: str) -> None:
    teacher, student, x, y = tiny(torch.bfloat16)
    distiller = METHODS[name](teacher, student, x)
    assert all(p.dtype == torch.bfloat16 for p in distiller.parameters())
    assert {term.dtype for term in distiller(x, y).terms.values()} == {torch.float32}
    assert_lawful_step(distiller, x, y)


def test_other_classes_than_the_teacher_s_are_named() -> None:
    _, student, x, y = tiny()
    with pytest.raises(ValueError, match="both must tell the same classes apart"):
        AT(Plain(classes=7).double(), student, x)(x, y)


def test_a_regressor_stands_also_between_features_of_equal_shape() -> None:
    teacher, _, x, y = tiny()
    assert_lawful_step(FitNet(teacher, Plain((6, 8, 12)).double(), x), x, y)


@pytest.mark.parametrize(("name", "fits"), [("FitNet", True), ("VID", True), ("AT", False)])
def test_vectors_have_no_places(name: str, fits: bool) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 4, 4), torch.tensor([0, 3, 4, 1])
    networks = perceptron(12), perceptron(8)
    if fits:
        assert_lawful_step(METHODS[name](*networks, x), x, y)
    else:
        with pytest.raises(ValueError, match=r"AT compares places, .* \(student: 8 D, teacher: 12 D\): choose"):
            METHODS[name](*networks, x)


def test_a_regressor_of_one_s_own() -> None:
    teacher, _, x, y = tiny()
    distiller = FitNet(teacher, Plain((6, 8, 12)).double(), x, make_connector=nn.Identity)
    distiller.student.load_state_dict(teacher.state_dict())
    assert distiller.eval()(x, y).terms["feature/block_2"] == 0
    assert not list(distiller.connectors.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, r"stages is \[\], expected"),
        ({"stages": [1, 1]}, r"stages is \[1, 1\], expected"),
        ({"stages": [0]}, r"stages is \[0\], expected"),
        ({"beta": -1.0}, r"the weights are {'beta': -1.0}, expected zero or more"),
        ({"alpha": 0.0, "beta": 0.0}, "expected zero or more, and one above zero"),
        ({"p": 0.0}, r"p is 0\.0, expected a power above zero"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    teacher, student, x, _ = tiny()
    with pytest.raises(ValueError, match=message):
        AT(teacher, student, x, **options)


def test_a_variance_that_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match=r"initial_variance is 0\.0, expected more than"):
        Gaussian(2, 2, 0.0)


@pytest.mark.parametrize(("n", "middle"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_the_middle(n: int, middle: int) -> None:
    assert chosen_stages("middle", n) == (middle,)
    assert chosen_stages("all", n) == tuple(range(1, n + 1))
    assert chosen_stages("last", n) == (n,)


def test_a_word_that_means_no_stage_is_named() -> None:
    with pytest.raises(ValueError, match="stages is 'first', expected 'all', 'middle', 'last', or different numbers"):
        inspect.unwrap(chosen_stages)("first", 3)  # past the type check that wraps it in tests


def test_a_distance_without_weight_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="distance has no effect: logit_weight is 0"):
        Mixture(1.0, 1.0, 0.0, KL())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Mixture(1.0, 1.0, 0.5, KL())
