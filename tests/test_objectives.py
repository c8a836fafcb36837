"""The laws of the objectives: each equals its oracle, value and gradient; its symmetries; its limits."""

import importlib.util
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor

from blockkd import distances, objectives
from blockkd.distances import DIST, DKD, KL, LogitDistance, SquaredError
from blockkd.objectives import standardize
from tests.oracles import objectives as oracle

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]

TEMPERATURES = [0.5, 1.0, 4.0, 20.0]
SHAPES = [(1, 2), (1, 5), (2, 2), (3, 4), (4, 7)]
TOLERANCE = {  # relative, of value and gradient; half precision rounds the gradient once, on its way out
    torch.float64: (1e-9, 1e-9),
    torch.float32: (2e-4, 2e-4),
    torch.bfloat16: (2e-4, 2**-7),
    torch.float16: (2e-4, 2**-9),
}


def _fast(temperature: float) -> dict[str, Objective]:
    tau = temperature
    return {
        "cross_entropy": lambda s, _t, y: objectives.cross_entropy(s, y),
        "cross_entropy smoothed": lambda s, _t, y: objectives.cross_entropy(s, y, label_smoothing=0.1),
        "kl": KL(tau),
        "tckd": lambda s, t, y: objectives.target_class_kd(s, t, y, tau),
        "nckd": lambda s, t, y: objectives.non_target_class_kd(s, t, y, tau),
        "dkd": DKD(0.7, 3.0, tau),
        "dist": DIST(0.7, 2.0, tau),
        "squared_error": SquaredError(),
        "kl standardized": KL(tau, standardized=True),
        "dkd standardized": DKD(0.7, 3.0, tau, standardized=True),
        "dist standardized": DIST(0.7, 2.0, tau, standardized=True),
    }


def _slow(temperature: float) -> dict[str, Objective]:
    tau, z = temperature, oracle.standardize
    return {
        "cross_entropy": lambda s, _t, y: oracle.cross_entropy(s, y),
        "cross_entropy smoothed": lambda s, _t, y: oracle.cross_entropy(s, y, 0.1),
        "kl": lambda s, t, _y: oracle.kl_divergence(s, t, tau),
        "tckd": lambda s, t, y: oracle.target_class_kd(s, t, y, tau),
        "nckd": lambda s, t, y: oracle.non_target_class_kd(s, t, y, tau),
        "dkd": lambda s, t, y: oracle.decoupled_kd(s, t, y, 0.7, 3.0, tau),
        "dist": lambda s, t, _y: oracle.dist(s, t, 0.7, 2.0, tau),
        "squared_error": lambda s, t, _y: oracle.squared_error(s, t),
        "kl standardized": lambda s, t, _y: oracle.kl_divergence(z(s), z(t), tau),
        "dkd standardized": lambda s, t, y: oracle.decoupled_kd(z(s), z(t), y, 0.7, 3.0, tau),
        "dist standardized": lambda s, t, _y: oracle.dist(z(s), z(t), 0.7, 2.0, tau),
    }


NAMES = list(_fast(1.0))
DISTANCES = [name for name in NAMES if not name.startswith("cross_entropy")]
SOFTMAX_BASED = [name for name in NAMES if name != "squared_error"]


def _logits(shape: tuple[int, int], dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    batch, classes = shape
    generator = torch.Generator().manual_seed(seed)
    learner, target = (2 * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)).to(dtype)
    return learner, target, torch.randint(classes, (batch,), generator=generator)


def _with_gradients(objective: Objective, learner: Tensor, target: Tensor, labels: Tensor) -> list[Tensor]:
    learner, target = learner.clone().requires_grad_(), target.clone().requires_grad_()
    loss = objective(learner, target, labels)
    gradients = torch.autograd.grad(loss, [learner, target], allow_unused=True, materialize_grads=True)
    return [loss.detach(), *gradients]


def _assert_close(got: Tensor, expected: Tensor, rtol: float, floor: float) -> None:
    # Measured against the largest entry: the small ones are differences of large ones.
    scale = max(expected.abs().max().item(), floor)
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_its_oracle_in_value_and_gradient(name: str, temperature: float, dtype: torch.dtype) -> None:
    value_rtol, gradient_rtol = TOLERANCE[dtype]
    # Two classes or two samples correlate by ±1: the gradient is what rounding leaves of 0, times τ.
    floor = 0.1 * max(temperature, 1) if "dist" in name else 0.1
    for seed, shape in enumerate(SHAPES):
        if name == "dist standardized" and shape[1] == 2:
            continue  # both classes stand at ±1, so that columns are constant: covered below
        learner, target, labels = _logits(shape, dtype, seed)
        got = _with_gradients(_fast(temperature)[name], learner, target, labels)
        expected = _with_gradients(_slow(temperature)[name], learner.double(), target.double(), labels)
        assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        _assert_close(got[0], expected[0], value_rtol, floor=1.0)
        for mine, theirs in zip(got[1:], expected[1:], strict=True):
            assert mine.dtype == dtype
            _assert_close(mine, theirs, gradient_rtol, floor)


@pytest.mark.parametrize("shape", SHAPES)
def test_standardize_equals_its_oracle(shape: tuple[int, int]) -> None:
    logits, weight, _ = _logits(shape)
    got = _with_gradients(lambda z, w, _: (standardize(z) * w).sum(), logits, weight, logits)
    expected = _with_gradients(lambda z, w, _: (oracle.standardize(z) * w).sum(), logits, weight, logits)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_kl_gradient_is_the_published_one() -> None:
    """Hinton et al., eq. 2 and 3: each sample's gradient is ``1/τ (p^S - p^T)``, here times τ²/B."""
    learner, target, labels = _logits((4, 6))
    _, gradient, _ = _with_gradients(KL(3.0), learner, target, labels)
    expected = 3.0 / 4 * ((learner / 3.0).softmax(1) - (target / 3.0).softmax(1))
    torch.testing.assert_close(gradient, expected)


def test_a_number_by_hand() -> None:
    """Probabilities (3/4, 1/4) against (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2)."""
    target, learner = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(objectives.kl_divergence(learner, target, 1.0), expected)
    torch.testing.assert_close(objectives.squared_error(learner + 3, learner + 1), torch.tensor(4.0))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DISTANCES)
def test_distance_of_equals_is_zero_and_so_is_its_gradient(name: str, temperature: float) -> None:
    for seed, shape in enumerate(SHAPES):
        if "dist" in name and (shape[0] == 1 or shape[1] == 2):
            continue  # columns that may be constant have no correlation
        learner, _, labels = _logits(shape, seed=seed)
        for result in _with_gradients(_fast(temperature)[name], learner, learner.clone(), labels):
            torch.testing.assert_close(result, torch.zeros_like(result), rtol=0, atol=1e-11)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_is_tckd_plus_nckd_weighed_by_what_the_teacher_leaves(temperature: float) -> None:
    """Zhao et al. 2022, section 3.1, in each sample."""
    learner, target, labels = _logits((7, 5))
    for b, label in enumerate(labels.tolist()):
        sample = learner[b : b + 1], target[b : b + 1], labels[b : b + 1]
        kd, tckd, nckd, dkd = (_fast(temperature)[name](*sample) for name in ("kl", "tckd", "nckd", "dkd"))
        left = 1 - (target / temperature).softmax(1)[b, label]
        torch.testing.assert_close(kd, tckd + left * nckd, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(dkd, 0.7 * tckd + 3.0 * nckd, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_two_classes_have_no_other_classes_to_compare(scale: float, dtype: torch.dtype) -> None:
    learner, target, labels = _logits((4, 2), dtype)
    learner, target = scale * learner, scale * target
    for result in _with_gradients(_fast(4.0)["nckd"], learner, target, labels):
        assert torch.equal(result, torch.zeros_like(result))
    decoupled = _with_gradients(DKD(1.0, 8.0), learner, target, labels)
    for mine, plain in zip(decoupled, _with_gradients(KL(), learner, target, labels), strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.5, 20.0])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_and_constant_logits_give_finite_values_and_gradients(
    name: str, temperature: float, dtype: torch.dtype
) -> None:
    # The flatter a row, the larger its gradient: one over its deviation, which float16 must be able to hold.
    big, tiny = 1e4, 1e-2 if dtype == torch.float16 else 1e-4
    rows = {
        "peak": [big, 0, 0, 0],
        "pit": [-big, 0, 0, 0],
        "both": [big, -big, 0, big],
        "constant": [0.1, 0.1, 0.1, 0.1],
        "constant and high": [big] * 4,
        "zero": [0.0] * 4,
        "hardly varying": [0, 0, tiny, 0],
        "plain": [1.0, -2.0, 0.5, 3.0],
    }
    everything = list(rows.values())
    pairs = [([ours], [theirs]) for ours in everything for theirs in everything]
    pairs += [([row, row], [[1.0, -2.0, 0.5, 3.0]] * 2) for row in everything]  # constant columns
    pairs += [(everything, everything[::-1])]
    for ours, theirs in pairs:
        learner, target = torch.tensor(ours).to(dtype), torch.tensor(theirs).to(dtype)
        labels = torch.arange(len(ours)) % 4
        value, *gradients = _with_gradients(_fast(temperature)[name], learner, target, labels)
        assert value.isfinite(), (name, ours, theirs)
        assert all(gradient.isfinite().all() for gradient in gradients), (name, ours, theirs)


def test_a_target_probability_that_underflows_adds_nothing() -> None:
    learner = torch.tensor([[0.0, 0.0, -500.0]])
    target = torch.tensor([[2.0, 1.0, -1e4]])
    assert target.softmax(1)[0, 2] == 0
    got = _with_gradients(KL(1.0), learner, target, torch.zeros(1, dtype=torch.long))
    expected = _with_gradients(KL(1.0), learner[:, :2], target[:, :2], torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(got[0], expected[0])
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, torch.nn.functional.pad(theirs, (0, 1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("height", [0.0, 0.1, 1e4])
def test_constant_rows_standardize_to_zero_and_keep_a_gradient_of_plain_size(height: float, dtype: torch.dtype) -> None:
    logits = torch.full((2, 7), height, dtype=dtype)
    standardized = standardize(logits)
    assert torch.equal(standardized, torch.zeros_like(standardized))
    _, target, labels = _logits((2, 7), dtype)
    _, gradient, _ = _with_gradients(KL(1.0, standardized=True), logits, target, labels)
    zeros = torch.zeros_like(target)
    _, plain, _ = _with_gradients(KL(1.0), zeros, standardize(target), labels)
    assert plain.abs().max() > 0.01
    torch.testing.assert_close(gradient, plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_two_standardized_classes_stand_at_plus_and_minus_one(dtype: torch.dtype) -> None:
    logits, weight, labels = _logits((5, 2), dtype)
    gradient = _with_gradients(lambda z, w, _: (standardize(z) * w).sum(), logits, weight, labels)[1]
    sign = (logits - logits.flip(1)).sign()
    torch.testing.assert_close(standardize(logits), sign)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_constant_rows_have_no_correlation(dtype: torch.dtype) -> None:
    _, target, labels = _logits((3, 7), dtype)
    for height in (0.0, 0.1, 1e4):
        learner = torch.full((3, 7), height, dtype=dtype)
        value, *gradients = _with_gradients(DIST(0.7, 2.0, 4.0), learner, target, labels)
        torch.testing.assert_close(value, torch.tensor(16 * 2.7, dtype=dtype))
        for gradient in gradients:
            assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(seed=st.integers(0, 10**6), closeness=st.floats(0, 1), temperature=st.sampled_from(TEMPERATURES))
@settings(max_examples=15, deadline=None)
def test_is_never_negative(name: str, dtype: torch.dtype, seed: int, closeness: float, temperature: float) -> None:
    learner, target, labels = _logits((3, 6), dtype, seed)
    value = _fast(temperature)[name](learner.lerp(target, closeness), target, labels)
    assert value >= -16 * torch.finfo(dtype).eps * max(temperature**2, 1)


@pytest.mark.parametrize("name", SOFTMAX_BASED)
@given(
    seed=st.integers(0, 10**6),
    left=st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    right=st.lists(st.floats(-50, 50), min_size=4, max_size=4),
)
@settings(max_examples=15, deadline=None)
def test_shifting_the_logits_of_a_sample_changes_nothing(
    name: str, seed: int, left: list[float], right: list[float]
) -> None:
    learner, target, labels = _logits((4, 5), seed=seed)
    shifts = [torch.tensor(shift, dtype=torch.float64)[:, None] for shift in (left, right)]
    expected = _with_gradients(_fast(2.0)[name], learner, target, labels)
    shifted = _with_gradients(_fast(2.0)[name], learner + shifts[0], target + shifts[1], labels)
    for mine, theirs in zip(shifted, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10**6), samples=st.permutations(range(4)), classes=st.permutations(range(5)))
@settings(max_examples=15, deadline=None)
def test_the_order_of_samples_and_of_classes_does_not_matter(
    name: str, seed: int, samples: list[int], classes: list[int]
) -> None:
    learner, target, labels = _logits((4, 5), seed=seed)
    value, *gradients = _with_gradients(_fast(2.0)[name], learner, target, labels)

    by_sample = _with_gradients(_fast(2.0)[name], learner[samples], target[samples], labels[samples])
    renamed = torch.tensor(classes).argsort()[labels]
    by_class = _with_gradients(_fast(2.0)[name], learner[:, classes], target[:, classes], renamed)

    torch.testing.assert_close(by_sample[0], value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(by_class[0], value, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(by_sample[1:], gradients, strict=True):
        torch.testing.assert_close(mine, theirs[samples], rtol=1e-7, atol=1e-9)
    for mine, theirs in zip(by_class[1:], gradients, strict=True):
        torch.testing.assert_close(mine, theirs[:, classes], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in DISTANCES if "standardized" in name])
def test_stretching_standardized_logits_changes_nothing(name: str) -> None:
    learner, target, labels = _logits((4, 5))
    objective = _fast(2.0)[name]
    stretched = objective(3 * learner, 0.1 * target, labels)
    torch.testing.assert_close(stretched, objective(learner, target, labels))


def test_standardized_rows_have_mean_zero_deviation_one_and_the_published_bound() -> None:
    logits, _, _ = _logits((6, 10))
    rows = torch.cat([logits, 5.0 * torch.eye(10, dtype=torch.float64)[:1]])
    standardized = standardize(rows)
    torch.testing.assert_close(standardized.mean(1), torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(standardized.std(1, correction=0), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(standardized.max(), torch.tensor(9.0, dtype=torch.float64).sqrt())


@pytest.mark.parametrize("temperature", [0.5, 4.0])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str, temperature: float) -> None:
    for shape in ((1, 5), (3, 4)):
        learner, target, labels = _logits(shape)
        leaves = [learner.requires_grad_()]
        if name in DISTANCES:
            leaves.append(target.requires_grad_())
        objective = _fast(temperature)[name]
        assert torch.autograd.gradcheck(
            lambda s, t=target, y=labels, f=objective: f(s, t, y), leaves, atol=1e-6, rtol=1e-4
        )


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_lower_the_precision(name: str) -> None:
    learner, target, labels = _logits((4, 5), torch.float32)
    objective = _fast(4.0)[name]
    with torch.autocast("cpu", torch.bfloat16):
        value = objective(learner, target, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, objective(learner, target, labels))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
@pytest.mark.parametrize("name", NAMES)
def test_narrow_label_types_are_fine(name: str, dtype: torch.dtype) -> None:
    learner, target, labels = _logits((4, 5))
    objective = _fast(4.0)[name]
    assert torch.equal(objective(learner, target, labels.to(dtype)), objective(learner, target, labels))


@pytest.mark.parametrize("name", NAMES)
def test_never_waits_for_the_device(name: str) -> None:
    """Meta tensors have no values: whoever asks for one raises."""
    learner, target, labels = (x.to("meta") for x in _logits((4, 5)))
    _with_gradients(_fast(4.0)[name], learner, target, labels)


@pytest.fixture(scope="module")
def unchecked() -> ModuleType:
    """The distances once more, without the shape checks that the tests wrap around them and the objectives."""
    module, functions = _loaded_again(distances), _loaded_again(objectives)
    for name in ("kl_divergence", "decoupled_kd", "dist", "squared_error", "standardize"):
        setattr(module, name, getattr(functions, name))
    return module


def _loaded_again(known: ModuleType) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{known.__name__}_unchecked", str(known.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["KL", "DKD", "DIST", "SquaredError"])
@pytest.mark.parametrize("standardized", [False, True])
def test_compiles_into_one_graph(unchecked: ModuleType, name: str, standardized: bool) -> None:
    options = {} if name == "SquaredError" else {"standardized": standardized}
    distance = getattr(unchecked, name)(**options)
    learner, target, labels = _logits((4, 5))
    compiled = torch.compile(lambda s, t, y: distance(s, t, y), backend="eager", fullgraph=True)
    for mine, theirs in zip(
        _with_gradients(compiled, learner, target, labels),
        _with_gradients(distance, learner, target, labels),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["KL", "DKD", "DIST", "SquaredError"])
def test_shapes_that_do_not_fit_are_named(unchecked: ModuleType, name: str) -> None:
    distance = getattr(unchecked, name)()
    learner, target, labels = _logits((4, 5))
    with pytest.raises(ValueError, match=r"learner \(4, 5\) and target \(4, 1\) differ"):
        distance(learner, target[:, :1], labels)
    with pytest.raises(ValueError, match=r"learner \(4, 5\) and target \(1, 5\) differ"):
        distance(learner, target[:1], labels)


def test_labels_that_do_not_fit_are_named(unchecked: ModuleType) -> None:
    learner, target, labels = _logits((4, 5))
    with pytest.raises(ValueError, match=r"labels have shape \(3,\), expected \(4,\)"):
        unchecked.DKD()(learner, target, labels[:3])
    with pytest.raises(ValueError, match="takes two"):
        unchecked.DKD()(learner[:, :1], target[:, :1], labels)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    learner, target, labels = _logits((2, 3))
    for distance in (KL, DKD, DIST):
        with pytest.raises(ValueError, match=f"temperature is {temperature}, expected a finite"):
            distance(temperature=temperature)
    for name in ("kl_divergence", "target_class_kd", "non_target_class_kd", "decoupled_kd", "dist"):
        between = {"decoupled_kd": (labels, 1.0, 1.0), "dist": (1.0, 1.0), "kl_divergence": ()}
        with pytest.raises(ValueError, match="temperature is"):
            getattr(objectives, name)(learner, target, *between.get(name, (labels,)), temperature)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_label_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    learner, _, labels = _logits((2, 3))
    with pytest.raises(ValueError, match=f"label_smoothing is {smoothing}, expected"):
        objectives.cross_entropy(learner, labels, smoothing)


@pytest.mark.parametrize(
    ("class_path", "init_args", "expected"),
    [
        ("blockkd.distances.KL", {"temperature": 2}, KL(2.0)),
        ("blockkd.distances.DKD", {"beta": 2, "standardized": True}, DKD(beta=2.0, standardized=True)),
        ("blockkd.distances.DIST", {"temperature": 1, "gamma": 3}, DIST(gamma=3.0, temperature=1.0)),
        ("blockkd.distances.SquaredError", {}, SquaredError()),
    ],
)
def test_configurable_by_class_path(class_path: str, init_args: dict[str, object], expected: LogitDistance) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--distance", type=LogitDistance | None, default=None)
    config = parser.parse_object({"distance": {"class_path": class_path, "init_args": init_args}})
    assert parser.instantiate(config).distance == expected
    assert parser.instantiate(parser.parse_object({})).distance is None


def test_defaults_are_the_authors() -> None:
    assert KL() == KL(temperature=4.0, standardized=False)
    assert DKD() == DKD(alpha=1.0, beta=8.0, temperature=4.0, standardized=False)
    assert DIST() == DIST(beta=1.0, gamma=1.0, temperature=4.0, standardized=False)
