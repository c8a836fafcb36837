"""Laws of Block-KD, against the equations written out."""

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from blockkd.baselines.logits import KD, CrossEntropy
from blockkd.block_kd import BlockKD
from blockkd.blocks import Blocks, PartitionError
from blockkd.distances import KL, SquaredError
from tests import networks
from tests.networks import IMAGE
from tests.oracles import block_kd as oracle
from tests.test_stones import MaskedNetwork


def pair(dtype: torch.dtype = torch.float64) -> tuple[networks.Plain, networks.Plain, Tensor, Tensor]:
    torch.manual_seed(0)
    teacher, student = networks.Plain((6, 8, 12)).to(dtype), networks.Plain((3, 4, 5)).to(dtype)
    return teacher, student, torch.randn(4, *IMAGE, dtype=dtype), torch.tensor([0, 3, 4, 1])


def step(distiller: nn.Module, x: Tensor, y: Tensor, steps: int = 3) -> list[Tensor]:
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        distiller(x, y).total.backward()
        optimizer.step()
    return [value.clone() for value in distiller.student.state_dict().values()]  # type: ignore[union-attr]


@pytest.mark.parametrize("stones", ["all", "last", [1, 3]])
@pytest.mark.parametrize(
    "weights", [(1.0, 1.0, 1.0), (0.3, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 0.7), (0.5, 2.0, 0.3)]
)
@pytest.mark.parametrize("detached", [True, False])
def test_the_loss_and_its_gradient_are_those_of_the_equations(
    stones: object, weights: tuple[float, float, float], detached: bool
) -> None:
    teacher, student, x, y = pair()
    alpha, beta, gamma = weights
    distiller = BlockKD(
        teacher, student, x, stones=stones, alpha=alpha, beta=beta, gamma=gamma, distance=KL(3.0),  # type: ignore[arg-type]
        detach_ensemble=detached,
    )  # fmt: skip
    twin = copy.deepcopy(distiller)
    losses = distiller(x, y)
    losses.total.backward()
    torch.testing.assert_close(losses.total, torch.stack(list(losses.terms.values())).sum())

    features, logits = twin.student_blocks.run(x)
    theirs = twin.teacher_blocks
    plain = {
        i: oracle.one_by_one(list(theirs.blocks), theirs.classifier, i, twin.connectors[str(i)](features[i - 1]))
        for i in twin.stones
    }
    expected = oracle.loss(logits, theirs(x), plain, y, 3, weights, 3.0, detached)
    expected.backward()
    torch.testing.assert_close(losses.total, expected)
    for ours, other in zip(distiller.parameters(), twin.parameters(), strict=True):
        if ours.grad is None:
            assert other.grad is None or not other.grad.any()
        else:
            torch.testing.assert_close(ours.grad, other.grad)


@pytest.mark.parametrize("weights", [{}, {"alpha": 0.7, "beta": 2.0}])
def test_no_stones_and_no_cross_is_plain_kd_step_for_step(weights: dict[str, float]) -> None:
    teacher, student, x, y = pair(torch.float32)
    twin = copy.deepcopy(student)
    ours = step(BlockKD(teacher, student, x, stones=[], gamma=0.0, **weights), x, y)  # type: ignore[arg-type]
    kd = step(KD(copy.deepcopy(teacher), twin, **weights), x, y)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(ours, kd, strict=True))


def test_only_labels_is_cross_entropy_step_for_step() -> None:
    teacher, student, x, y = pair(torch.float32)
    twin = copy.deepcopy(student)
    ours = step(BlockKD(teacher, student, x, stones=[], alpha=1.0, beta=0.0, gamma=0.0), x, y)
    plain = step(CrossEntropy(None, twin), x, y)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_stones_of_weight_zero_are_no_stones() -> None:
    teacher, student, x, y = pair(torch.float32)
    twin = copy.deepcopy(student)
    ours = BlockKD(teacher, student, x, stone_weights=[0.0, 0.0, 0.0], gamma=0.0)
    none = BlockKD(copy.deepcopy(teacher), twin, x, stones=[], gamma=0.0)
    assert all(torch.equal(a, b) for a, b in zip(step(ours, x, y), step(none, x, y), strict=True))
    assert set(ours(x, y).terms) == {"task/student", "distill/student"}


def test_the_default_weights_halve_from_stone_to_stone() -> None:
    teacher, student, x, _ = pair()
    assert BlockKD(teacher, student, x).stone_weights == {1: 0.25, 2: 0.5, 3: 1.0}
    assert BlockKD(copy.deepcopy(teacher), student, x, stones=[1, 3]).stone_weights == {1: 0.25, 3: 1.0}


@pytest.mark.parametrize("stone", [1, 2, 3])
def test_a_stones_gradient_reaches_its_student_blocks_and_its_connector_only(stone: int) -> None:
    teacher, student, x, y = pair()
    distiller = BlockKD(teacher, student, x)
    distiller(x, y).terms[f"distill/stone_{stone}"].backward()
    reached = {name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.any()}
    expected = {f"student.stages.{i}" for i in range(stone)} | {f"connectors.{stone}"}
    assert {
        next(place for place in (*expected, name) if name.startswith(place + ".") or name == place) for name in reached
    } == expected
    assert all(p.grad is None for p in teacher.parameters())


def test_the_teacher_is_bitwise_unchanged_by_training() -> None:
    teacher, student, x, y = pair(torch.float32)
    distiller = BlockKD(teacher, student, x)
    before = copy.deepcopy(teacher.state_dict())
    distiller.train()
    teacher.train()  # somebody's mistake
    teacher.stages[1].train()
    step(distiller, x, y)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module.training for module in teacher.modules())


def test_the_teacher_is_in_no_state_and_among_no_parameters() -> None:
    teacher, student, x, _ = pair()
    distiller = BlockKD(teacher, student, x)
    assert {key.split(".")[0] for key in distiller.state_dict()} == {"student", "connectors"}
    assert {k.removeprefix("student.") for k in distiller.state_dict() if k.startswith("student.")} == set(
        student.state_dict()
    )
    theirs = {id(p) for p in teacher.parameters()}
    assert not theirs & {id(p) for p in distiller.parameters()}
    assert all(p.requires_grad for p in distiller.parameters())


def test_moving_the_distiller_moves_the_teacher() -> None:
    teacher, student, x, y = pair(torch.float32)
    distiller = BlockKD(teacher, student, x).double()
    assert {p.dtype for p in teacher.parameters()} == {torch.float64}
    assert distiller(x.double(), y).total.dtype == torch.float64


def test_what_nothing_needs_is_not_computed() -> None:
    teacher, student, x, y = pair()
    called: list[str] = []
    teacher.register_forward_hook(lambda *_: called.append("teacher"))
    distiller = BlockKD(teacher, student, x, beta=0.0)
    called.clear()
    distiller(x, y)
    assert called == []
    distiller.beta = 1.0
    distiller(x, y)
    assert called == ["teacher"]


def test_cross_starts_at_its_epoch() -> None:
    teacher, student, x, y = pair()
    distiller = BlockKD(teacher, student, x, gamma=1.0, cross_from_epoch=2)
    for epoch, on in ((0, False), (1, False), (2, True), (3, True)):
        distiller.set_epoch(epoch)
        assert any(name.startswith("cross/") for name in distiller(x, y).terms) == on


def test_the_distance_is_replaceable() -> None:
    teacher, student, x, y = pair()
    losses = BlockKD(teacher, student, x, distance=SquaredError(), alpha=0.0, beta=1.0)(x, y)
    expected = (losses.logits - teacher(x)).square().mean()
    torch.testing.assert_close(losses.terms["distill/student"].detach(), expected)


def test_connectors_are_replaceable() -> None:
    teacher, student, x, y = pair()

    def wide(ours: object, theirs: object) -> nn.Module:
        return nn.Conv2d(ours.channels, theirs.channels, 3, padding=1).double()  # type: ignore[attr-defined]

    distiller = BlockKD(teacher, student, x, make_connector=wide)
    assert all(isinstance(connector, nn.Conv2d) for connector in distiller.connectors.values())
    distiller(x, y).total.backward()


def test_without_an_example_any_resolution_goes() -> None:
    teacher, student, _, y = pair(torch.float32)
    distiller = BlockKD(teacher, student)
    for side in (16, 24, 40, 16):
        losses = distiller(torch.randn(4, 3, side, side), y)
        assert torch.isfinite(losses.total)


def test_grids_that_differ_are_fitted_to_each_resolution() -> None:
    _, student, _, y = pair(torch.float32)
    teacher = nn.Sequential(nn.MaxPool2d(2), networks.Plain((6, 8, 12)))
    distiller = BlockKD(teacher, student)
    for side in (16, 32, 24):
        x = torch.randn(4, 3, side, side)
        features, _ = distiller.student_blocks.run(x)
        distiller(x, y).total.backward()
        for i in distiller.stones:
            grid = distiller.connectors[str(i)](features[i - 1]).shape[2:]
            assert grid == (side // 2**i, side // 2**i)


def test_sizes_held_by_a_graph_are_no_silent_mistake() -> None:
    class Sized(networks.Plain):
        def forward(self, x: Tensor) -> Tensor:
            height = x.shape[2]
            for stage in self.stages:
                x = stage(x)
            return self.head(x.mean((2, 3)) * (height / 16))

    _, student, x, y = pair(torch.float32)
    teacher = Sized((6, 8, 12))
    distiller = BlockKD(teacher, student, x)
    assert distiller.teacher_blocks.only_for == x.shape[1:]
    wide = torch.randn(4, 3, 32, 32)
    with pytest.raises(PartitionError, match=r"Sized was cut for inputs \(3, 16, 16\).*got \(3, 32, 32\)"):
        distiller.teacher_blocks(wide)
    distiller(wide, y)  # cut again, at the same places
    assert torch.equal(distiller.teacher_blocks(wide), teacher(wide))
    assert distiller.teacher_blocks.names == ("stages.0", "stages.1", "stages.2")


def test_names_and_ready_made_blocks() -> None:
    teacher, student, x, y = pair()
    named = BlockKD(
        teacher, student, x, teacher_blocks=["stages.0", "stages.2"], student_blocks=["stages.1", "stages.2"]
    )
    assert named.stones == (1, 2)
    assert (named.teacher_blocks.names, named.student_blocks.names) == (
        ("stages.0", "stages.2"),
        ("stages.1", "stages.2"),
    )
    half = BlockKD(teacher, student, x, teacher_blocks=["stages.0", "stages.2"])
    assert len(half.student_blocks) == 2
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), student.head)
    by_hand = BlockKD(teacher, student, x, student_blocks=Blocks(list(student.stages), pooled))
    found = BlockKD(teacher, student, x)
    by_hand.connectors.load_state_dict(found.connectors.state_dict())
    torch.testing.assert_close(by_hand.eval()(x, y).total, found.eval()(x, y).total)


def test_blocks_by_hand_are_checked() -> None:
    teacher, student, x, _ = pair()
    stranger = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 5).double())
    with pytest.raises(PartitionError, match="not the network's"):
        BlockKD(teacher, student, x, student_blocks=Blocks(list(student.stages), stranger), n_blocks=3)
    pooled = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), student.head)
    with pytest.raises(PartitionError, match="do not give its logits"):
        BlockKD(teacher, student, x, student_blocks=Blocks(list(student.stages), pooled))


def test_context_reaches_student_teacher_and_stones() -> None:
    torch.manual_seed(0)
    teacher, student = MaskedNetwork().double(), MaskedNetwork().double()
    x, mask = torch.randn(3, 4, 6, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
    mask[0, 2:] = 0

    def blocks(network: MaskedNetwork) -> Blocks:
        found = Blocks(list(network.layers), network.head)
        found.features = found.measure(x, mask=mask)
        return found

    distiller = BlockKD(teacher, student, x, teacher_blocks=blocks(teacher), student_blocks=blocks(student))
    padded = x.clone()
    padded[0, 2:] = 100.0  # behind the mask
    y = torch.tensor([0, 1, 2])
    torch.testing.assert_close(distiller(x, y, mask=mask).total, distiller(padded, y, mask=mask).total)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stones": [4]}, "expected different stones among 1 … 3"),
        ({"alpha": -1.0}, "expected zero or more"),
        ({"alpha": 0.0, "beta": 0.0, "gamma": 0.0}, "one above zero"),
        ({"stone_weights": [1.0]}, "1 weights for the 3 stones"),
        ({"stone_weights": [1.0, -1.0, 1.0]}, "zero or more"),
        ({"n_blocks": 2, "teacher_blocks": ["stages.2"]}, "same number of blocks"),
        ({"n_blocks": 0}, "at least 1"),
        ({"alpha": 0.0, "beta": 0.0, "gamma": 1.0, "cross_from_epoch": 3}, "nothing would be learned"),
        ({"alpha": 0.0, "beta": 0.0, "gamma": 1.0, "stones": []}, "nothing would be learned"),
        ({"n_blocks": 9}, "can be cut after"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    teacher, student, x, _ = pair()
    with pytest.raises(ValueError, match=message):
        BlockKD(teacher, student, x, **options)  # type: ignore[arg-type]


def test_a_gamma_without_effect_is_told() -> None:
    teacher, student, x, _ = pair()
    with pytest.warns(UserWarning, match="no effect"):
        BlockKD(teacher, student, x, stones=[], gamma=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BlockKD(copy.deepcopy(teacher), student, x)


def test_wrong_batches_are_named() -> None:
    teacher, student, x, y = pair()
    distiller = BlockKD(teacher, student, x)
    with pytest.raises(ValueError, match="label 7 is out of range for 5 classes"):
        distiller(x, y + 3)
    other = networks.Plain((6, 8, 12), classes=9).double()
    with pytest.raises(ValueError, match=r"teacher gave logits of shape \(4, 9\) and the student \(4, 5\)"):
        BlockKD(other, student, x)(x, y)
    with pytest.raises(ValueError, match="share"):
        BlockKD(student, student, x)
    with pytest.raises(ValueError, match="give example="):
        BlockKD(networks.Plain(channels=1), networks.Plain(channels=3))


def test_a_student_that_cannot_train_in_blocks_is_refused() -> None:
    teacher, _, x, _ = pair(torch.float32)
    with pytest.raises(PartitionError, match="random"):
        BlockKD(teacher, networks.RandomDepth(), x)


def test_a_cross_that_never_starts_is_told() -> None:
    teacher, student, x, _ = pair()
    distiller = BlockKD(teacher, student, x, gamma=1.0, cross_from_epoch=20)
    with pytest.warns(UserWarning, match="L_cross has no effect: it starts at epoch 20 and training ends after 10"):
        distiller.check_schedule(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller.check_schedule(21)


def test_a_pickled_distiller_is_the_same() -> None:
    teacher, student, x, y = pair()
    distiller = BlockKD(teacher, student, x)
    again = pickle.loads(pickle.dumps(distiller))
    assert torch.equal(again(x, y).total, distiller(x, y).total)


def test_the_whole_step_compiles_to_one_graph() -> None:
    code = """
import torch
import blockkd
from tests.networks import Plain
torch.manual_seed(0)
x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 3, 4, 1])
distiller = blockkd.BlockKD(Plain((6, 8, 12)), Plain((3, 4, 5)), x, gamma=1.0).eval()
compiled = torch.compile(distiller, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x, y).total, distiller(x, y).total)
compiled(x, y).total.backward()
"""
    # In a process of its own, without the checks of shapes that the tests put around every function.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "labels", [torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([[0], [1], [2], [3]]), torch.tensor([0, 1])]
)
def test_labels_that_are_none(labels: Tensor) -> None:
    teacher, student, x, _ = pair()
    distiller = BlockKD(teacher, student, x)
    with pytest.raises((ValueError, TypeCheckError), match=r"expected one whole number|targets"):
        distiller(x, labels)


def test_a_student_from_an_evaluation_is_trained() -> None:
    teacher, student, x, _ = pair()
    distiller = BlockKD(teacher, student.eval(), x)
    assert distiller.training
    assert all(module.training for module in student.modules())


def test_gradients_switched_on_for_the_teacher_are_switched_off_again() -> None:
    teacher, student, x, y = pair()
    distiller = BlockKD(teacher, student, x)
    teacher.requires_grad_(True)
    distiller(x, y).total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_sequences_of_another_channel_order() -> None:
    torch.manual_seed(0)
    distiller = BlockKD(networks.Waveform(8), networks.Waveform(4), torch.randn(2, 1, 64))
    assert [feature.layout for feature in distiller.student_blocks.features] == ["CL", "CL", "CL"]
    distiller(torch.randn(4, 1, 64), torch.tensor([0, 1, 2, 3])).total.backward()
    weight = distiller.connectors["1"].get_parameter("project.weight")
    assert weight.shape[:2] == (8, 4)
