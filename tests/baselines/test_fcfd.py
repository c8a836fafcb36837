"""Laws of FCFD, against the equations written out."""

import copy

import pytest
import torch
from torch import Tensor, nn

from blockkd.baselines.bridges import Bridge, Bridges
from blockkd.baselines.fcfd import FCFD, MixedPath, activated, own_batch_statistics
from blockkd.baselines.logits import KD
from blockkd.distances import KL
from blockkd.features import Feature
from blockkd.models import create_model
from tests import networks
from tests.baselines.laws import CIFAR_PAIRS, cifar_pair
from tests.baselines.test_alignment import ChannelsLast
from tests.networks import IMAGE
from tests.oracles import fcfd as oracle


def pair(dtype: torch.dtype = torch.float64) -> tuple[networks.Plain, networks.Plain, Tensor, Tensor]:
    torch.manual_seed(0)
    teacher, student = networks.Plain((6, 8, 12)).to(dtype), networks.Plain((3, 4, 5)).to(dtype)
    x = torch.randn(4, *IMAGE, dtype=dtype)
    with torch.no_grad():
        for _ in range(20):
            teacher(x)  # so that its running statistics are not those of its start
    return teacher, student, x, torch.tensor([0, 3, 4, 1])


def bridges_of(distiller: FCFD) -> tuple[dict[int, oracle.Bridge], dict[int, oracle.Bridge]]:
    there: dict[int, oracle.Bridge] = {}
    back: dict[int, oracle.Bridge] = {}
    for name, bridges in distiller.connectors.items():
        assert isinstance(bridges, Bridges)
        there[int(name)] = bridges.there.convolution, bridges.there.norm
        if bridges.home is not None:
            back[int(name)] = bridges.home.convolution, bridges.home.norm
    return there, back


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 5.0), (0.3, 0.0, 2.0, 0.0), (0.0, 0.5, 0.0, 0.7)])
@pytest.mark.parametrize("paths", [1, 2, 4])
def test_the_loss_and_its_gradient_are_those_of_the_equations(
    weights: tuple[float, float, float, float], paths: int
) -> None:
    teacher, student, x, y = pair()
    alpha, beta, mixed, features = weights
    distiller = FCFD(
        teacher, student, x, alpha=alpha, beta=beta, mixed_weight=mixed, feature_weight=features, paths=paths,
        warmup_epochs=4, distance=KL(3.0),
    )  # fmt: skip
    for epoch in (0, 2, 9):
        distiller.set_epoch(epoch)
        twin = copy.deepcopy(distiller)
        drawn = [(path.prefix, path.after) for path in copy.deepcopy(twin).draw_paths()] if mixed else []
        assert len(set(drawn)) == (paths if mixed else 0)
        losses = distiller(x, y)
        distiller.zero_grad()
        losses.total.backward()
        expected = oracle.loss(
            twin.teacher, twin.student, *bridges_of(twin), x, y, drawn, weights, epoch + 1, 4, 3.0  # type: ignore[arg-type]
        )  # fmt: skip
        expected.backward()
        torch.testing.assert_close(losses.total, expected)
        torch.testing.assert_close(losses.total, torch.stack(list(losses.terms.values())).sum())
        for ours, other in zip(distiller.parameters(), twin.parameters(), strict=True):
            if ours.grad is None or other.grad is None:
                assert all(p.grad is None or not p.grad.any() for p in (ours, other))
            else:
                torch.testing.assert_close(ours.grad, other.grad)


def test_without_mixed_paths_and_features_it_is_plain_kd_step_for_step() -> None:
    results = []
    for method, options in ((FCFD, {"mixed_weight": 0.0, "feature_weight": 0.0}), (KD, {"alpha": 1.0, "beta": 1.0})):
        teacher, student, x, y = pair(torch.float32)
        distiller = method(teacher, student, **options)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            distiller(x, y).total.backward()
            optimizer.step()
        results.append(list(student.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_mixed_paths_leave_no_trace_in_either_network() -> None:
    teacher, student, x, y = pair(torch.float32)
    alone = copy.deepcopy(student).train()
    alone(x)
    before = copy.deepcopy(teacher.state_dict())
    distiller = FCFD(teacher, student, x, paths=4)
    teacher.train()  # somebody's mistake
    distiller(x, y).total.backward()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(module.training for module in student.modules())
    for (name, ours), theirs in zip(student.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(module.track_running_stats for module in distiller.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize(("path", "reached"), [
    (MixedPath("student", 1), {"student.stages.0", "connectors.1.there"}),
    (MixedPath("student", 2), {"student.stages.0", "student.stages.1", "connectors.2.there"}),
    (MixedPath("teacher", 1), {"connectors.1.home", "student.stages.1", "student.stages.2", "student.head"}),
    (MixedPath("teacher", 2), {"connectors.2.home", "student.stages.2", "student.head"}),
])  # fmt: skip
def test_a_mixed_paths_gradient_reaches_what_it_runs_through(path: MixedPath, reached: set[str]) -> None:
    teacher, student, x, y = pair()
    distiller = FCFD(teacher, student, x, paths=1)
    distiller.candidates = [path]
    distiller(x, y).terms["distill/mixed"].backward()
    found = {name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(any(name.startswith(place) for place in reached) for name in found)
    assert all(any(name.startswith(place) for name in found) for place in reached)


def test_own_batch_statistics_are_given_back_after_an_error() -> None:
    norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)]
    network = nn.Sequential(*norms).eval()

    def fail() -> None:
        with own_batch_statistics(network):
            assert all(norm.training and not norm.track_running_stats for norm in norms)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(norm.training, norm.track_running_stats) for norm in norms] == [(False, True), (False, False)]


def test_all_paths_are_drawn_equally_often_and_in_another_order_for_another_seed() -> None:
    orders = []
    for seed in (1, 2):
        teacher, student, x, _ = pair()
        torch.manual_seed(seed)
        distiller = FCFD(teacher, student, x)
        state = torch.get_rng_state()
        draws = [distiller.draw_paths() for _ in range(400)]
        assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers move
        assert all(len({*drawn}) == 2 for drawn in draws)
        counts = [sum(path in drawn for drawn in draws) for path in distiller.candidates]
        assert len(counts) == 4
        assert all(150 < count < 250 for count in counts)
        orders.append(draws)
    assert orders[0] != orders[1]


def test_a_resumed_run_draws_what_the_uninterrupted_one_draws() -> None:
    teacher, student, x, y = pair(torch.float32)
    distiller = FCFD(teacher, student, x)
    for _ in range(3):
        distiller(x, y)
    state = copy.deepcopy(distiller.state_dict())
    uninterrupted = [distiller(x, y).total for _ in range(5)]
    torch.manual_seed(77)
    other_teacher, other, _, _ = pair(torch.float32)
    torch.manual_seed(78)
    resumed = FCFD(other_teacher, other, x)
    resumed.load_state_dict(state)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in state.items())
    assert [resumed(x, y).total for _ in range(5)] == uninterrupted


def test_evaluation_draws_no_path() -> None:
    teacher, student, x, y = pair()
    distiller = FCFD(teacher, student, x).eval()
    before = distiller.get_extra_state()
    assert set(distiller(x, y).terms) == {"task/student", "distill/student"} | {f"feature/block_{i}" for i in (1, 2, 3)}
    assert torch.equal(distiller.get_extra_state(), before)


def test_the_state_holds_student_and_bridges_but_no_teacher() -> None:
    teacher, student, x, _ = pair()
    distiller = FCFD(teacher, student, x)
    assert {key.split(".")[0] for key in distiller.state_dict()} == {"student", "connectors", "_extra_state"}
    theirs = {id(p) for p in teacher.parameters()}
    assert not theirs & {id(p) for p in distiller.parameters()}


@pytest.mark.parametrize(("ours", "theirs"), [(8, 8), (16, 8), (4, 8), (12, 8), (6, 8), (3, 8), (32, 8)])
@pytest.mark.parametrize("layouts", [("CHW", "CHW"), ("HWC", "CHW"), ("CHW", "HWC")])
def test_bridges_lead_between_the_grids(ours: int, theirs: int, layouts: tuple[str, str]) -> None:
    def feature(channels: int, side: int, layout: str) -> Feature:
        shape = (channels, side, side) if layout == "CHW" else (side, side, channels)
        return Feature(shape, layout)  # type: ignore[arg-type]

    student, teacher = feature(3, ours, layouts[0]), feature(5, theirs, layouts[1])
    bridges = Bridges(student, teacher, to_teacher=True, to_student=False)
    assert bridges(torch.randn(2, *student.shape)).shape[1:] == teacher.shape
    assert bridges.back(torch.randn(2, *teacher.shape)).shape[1:] == student.shape
    learned = {(16, 8): (nn.Conv2d, (2, 2)), (4, 8): (nn.ConvTranspose2d, (2, 2))}
    kind, stride = learned.get((ours, theirs), (nn.Conv2d, (1, 1)))
    assert isinstance(bridges.there.convolution, kind)
    assert bridges.there.convolution.stride == stride


def test_a_bridge_leaks_only_where_the_target_is_activated() -> None:
    source = Feature((3, 4, 4), "CHW")
    x = torch.randn(2, 3, 4, 4)
    for on in (True, False):
        bridge = Bridge(source, source, on)
        plain = bridge.norm(bridge.convolution(x))
        expected = torch.where(plain > 0, plain, 0.1 * plain) if on else plain
        torch.testing.assert_close(bridge(x), expected)


def test_whether_a_feature_is_activated_is_seen() -> None:
    for name, expected in (("resnet8", True), ("wrn_16_1", False)):
        torch.manual_seed(0)
        network = create_model(name, num_classes=5)
        distiller = FCFD(create_model("resnet8", num_classes=5), network, torch.zeros(2, 3, 32, 32))
        assert activated(distiller.student_blocks, torch.randn(2, 3, 32, 32)) == [expected] * 3
        ends = [bridges.home.activation for bridges in distiller.connectors.values() if bridges.home is not None]  # type: ignore[union-attr]
        assert [isinstance(end, nn.LeakyReLU) for end in ends] == [expected] * 2
        assert all(isinstance(b.there.activation, nn.LeakyReLU) for b in distiller.connectors.values())  # type: ignore[union-attr]


def test_any_resolution_goes() -> None:
    _, student, _, y = pair(torch.float32)
    teacher = nn.Sequential(nn.MaxPool2d(2), networks.Plain((6, 8, 12)))
    distiller = FCFD(teacher, student, paths=4)
    for side in (16, 24, 36, 16):
        x = torch.randn(4, 3, side, side)
        assert torch.isfinite(distiller(x, y).total)
        pairs = zip(distiller.student_features(x)[0], distiller.teacher_features(x)[0], strict=True)
        for bridges, (ours, theirs) in zip(distiller.connectors.values(), pairs, strict=True):
            assert isinstance(bridges, Bridges)
            assert bridges(ours).shape == theirs.shape
            if bridges.home is not None:
                assert bridges.back(theirs).shape == ours.shape


def test_the_last_maps_are_pooled_over_their_places_whichever_side_the_channels_are_on() -> None:
    torch.manual_seed(0)
    teacher, student, x = ChannelsLast(8), ChannelsLast(5), torch.randn(3, *IMAGE)
    distiller = FCFD(teacher, student, x, n_blocks=3, feature_weight=2.0, warmup_epochs=0).eval()
    losses = distiller(x, torch.tensor([0, 3, 4]))
    for i in (1, 2, 3):
        ours, theirs = (run(x)[0][i - 1] for run in (distiller.student_features, distiller.teacher_features))
        mapped = distiller.connectors[str(i)](ours)
        expected = (mapped - theirs).square().mean()
        if i == 3:
            pooled = [feature.clamp(min=0).flatten(1, 2).mean(1) for feature in (mapped, theirs)]
            expected = expected + (pooled[0] - pooled[1]).square().mean()
        torch.testing.assert_close(losses.terms[f"feature/block_{i}"], 2.0 * expected)


@pytest.mark.parametrize(("teacher", "student"), CIFAR_PAIRS)
def test_it_takes_a_step_on_the_fields_pairs(teacher: str, student: str) -> None:
    big, small, theirs, ours = cifar_pair(teacher, student)
    before = copy.deepcopy(big.state_dict())
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([3, 9])
    distiller = FCFD(big, small, x, paths=4, teacher_blocks=theirs, student_blocks=ours)
    distiller.zero_grad()
    losses = distiller(x, y)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(p.grad is not None for p in small.parameters())
    assert all(b.there.convolution.weight.grad is not None for b in distiller.connectors.values())  # type: ignore[union-attr]
    assert all(p.grad is None for p in big.parameters())
    assert all(torch.equal(value, before[name]) for name, value in big.state_dict().items())


def test_what_does_not_fit_is_named() -> None:
    teacher, student, x, _ = pair()
    with pytest.raises(ValueError, match="paths is 5, expected 1 … 4"):
        FCFD(teacher, student, x, paths=5)
    with pytest.raises(ValueError, match="paths is 0"):
        FCFD(teacher, student, x, paths=0)
    with pytest.raises(ValueError, match="one block only"):
        FCFD(teacher, student, x, n_blocks=1)
    with pytest.raises(ValueError, match="convolutions between maps, but the student has a feature 17×8 LD"):
        FCFD(networks.Tokens(), networks.Tokens(8), torch.randn(2, *IMAGE))
    last = Bridges(Feature((3, 4, 4), "CHW"), Feature((3, 4, 4), "CHW"), to_teacher=True, to_student=None)
    with pytest.raises(ValueError, match="no bridge back after the last block"):
        last.back(torch.randn(2, 3, 4, 4))
