"""Laws of the four ways to align features."""

import copy

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from blockkd.baselines.alignment import USUAL_WEIGHTS, FeatureAlignment, Way
from blockkd.baselines.logits import KD
from blockkd.block_kd import BlockKD
from blockkd.distances import KL
from tests import networks
from tests.baselines.laws import cifar_pair
from tests.networks import IMAGE
from tests.oracles import alignment as oracle
from tests.oracles import block_kd as stones

EXPLICIT: list[Way] = ["two_projections", "one_mapping", "consolidated"]
WAYS: list[Way] = [*EXPLICIT, "implicit"]


class ChannelsLast(nn.Module):
    """Stages on maps whose channels come last, as in Swin."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.stages = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(3))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.permute(0, 2, 3, 1))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((1, 2)))


def pair(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    made: dict[str, tuple[nn.Module, nn.Module]] = {
        "maps": (networks.Plain((6, 8, 12)), networks.Plain((3, 4, 5))),
        "other-grid": (nn.Sequential(nn.MaxPool2d(2), networks.Plain((6, 8, 12))), networks.Plain((3, 4, 5))),
        "channels-last": (ChannelsLast(8), ChannelsLast(5)),
        "tokens": (networks.Tokens(8), networks.Tokens(4)),
    }
    teacher, student = made[kind]
    return teacher.to(dtype), student.to(dtype), torch.randn(3, *IMAGE, dtype=dtype), torch.tensor([0, 3, 4])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["maps", "other-grid", "channels-last", "tokens"])
def test_the_loss_and_its_gradient_are_those_of_the_equations(way: Way, kind: str) -> None:
    teacher, student, x, y = pair(kind)
    distiller = FeatureAlignment(
        teacher, student, x, way=way, n_blocks=3, stages=[1, 3], alpha=0.3, beta=0.5, gamma=7.0, distance=KL(3.0)
    )
    twin = copy.deepcopy(distiller)
    torch.manual_seed(1)  # for the tokens' dropout
    losses = distiller(x, y)
    losses.total.backward()
    torch.testing.assert_close(losses.total, torch.stack(list(losses.terms.values())).sum())

    torch.manual_seed(1)
    ours, logits = twin.student_blocks.run(x)
    theirs, target = twin.teacher_features(x)
    expected = 0.3 * stones.task(logits, y) + 0.5 * stones.distance(logits, target, 3.0)
    for i, weight in ((1, 0.25), (3, 1.0)):
        connect = twin.connectors[str(i)] if way != "two_projections" else None
        if way == "implicit":
            assert connect is not None
            blocks = twin.teacher_blocks
            stone = stones.one_by_one(list(blocks.blocks), blocks.classifier, i, connect(ours[i - 1]))
            apart = stones.distance(stone, target, 3.0)
        else:
            layout = twin.teacher_blocks.features[i - 1].layout
            apart = oracle.apart(way, ours[i - 1], theirs[i - 1], layout, connect)
        torch.testing.assert_close(losses.terms[f"align/block_{i}"], 7.0 * weight * apart)
        expected = expected + 7.0 * weight * apart
    expected.backward()
    torch.testing.assert_close(losses.total, expected)
    for one, two in zip(distiller.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_channels_first_and_last_are_compared_place_by_place() -> None:
    torch.manual_seed(0)
    teacher, student = networks.Plain((6, 8, 12)), ChannelsLast(5)
    distiller = FeatureAlignment(teacher, student, torch.randn(3, *IMAGE), way="two_projections", n_blocks=3, gamma=1.0)
    x = torch.randn(3, *IMAGE)
    terms = distiller(x, torch.tensor([0, 3, 4])).terms
    ours, theirs = distiller.student_features(x)[0], distiller.teacher_features(x)[0]
    for i, weight in ((1, 0.25), (2, 0.5), (3, 1.0)):
        apart = oracle.apart("two_projections", ours[i - 1].permute(0, 3, 1, 2), theirs[i - 1], "CHW")
        torch.testing.assert_close(terms[f"align/block_{i}"], weight * apart)


def test_the_implicit_way_is_block_kds_distillation() -> None:
    teacher, student, x, y = pair("maps")
    twin, copied = copy.deepcopy(teacher), copy.deepcopy(student)
    torch.manual_seed(1)
    ours = FeatureAlignment(teacher, student, x, way="implicit", alpha=0.0)(x, y)
    torch.manual_seed(1)
    theirs = BlockKD(twin, copied, x, alpha=0.0, beta=1.0, gamma=0.0)(x, y)
    torch.testing.assert_close(ours.total, theirs.total, rtol=0, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_without_alignment_it_is_plain_kd(way: Way) -> None:
    teacher, student, x, y = pair("maps")
    plain = KD(copy.deepcopy(teacher), copy.deepcopy(student), 0.1, 0.9)(x, y)
    losses = FeatureAlignment(teacher, student, x, way=way, alpha=0.1, beta=0.9, gamma=0.0)(x, y)
    assert torch.equal(losses.total, plain.total)
    assert set(losses.terms) == {"task/student", "distill/student"}


@pytest.mark.parametrize("way", WAYS)
def test_equal_features_are_at_distance_zero(way: Way) -> None:
    teacher, _, x, y = pair("maps")
    distiller = FeatureAlignment(
        teacher, copy.deepcopy(teacher).requires_grad_(), x, way=way, make_connector=lambda *_: nn.Identity()
    ).eval()
    terms = distiller(x, y).terms
    assert len(terms) == 5
    for name, value in terms.items():
        if name != "task/student":
            torch.testing.assert_close(value, torch.zeros_like(value))


def test_the_usual_weight_of_each_way_is_the_default() -> None:
    for way in WAYS:
        teacher, student, x, _ = pair("maps")
        assert FeatureAlignment(teacher, student, x, way=way).gamma == USUAL_WEIGHTS[way]
        assert FeatureAlignment(teacher, student, x, way=way, gamma=2.0).gamma == 2.0


@pytest.mark.parametrize("way", WAYS)
def test_gradients_reach_student_and_connectors_and_the_teacher_never(way: Way) -> None:
    teacher, student, x, y = pair("maps", torch.float32)
    before = copy.deepcopy(teacher.state_dict())
    distiller = FeatureAlignment(teacher, student, x, way=way)
    assert {key.split(".")[0] for key in distiller.state_dict()} == {"student"} | (
        {"connectors"} if way != "two_projections" else set()
    )
    teacher.train()  # somebody's mistake
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01)
    for _ in range(2):
        distiller(x, y).total.backward()
        assert all(p.grad is not None and p.grad.any() for p in distiller.parameters())
        optimizer.step()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    _, fresh, _, _ = pair("maps", torch.float32)
    other = FeatureAlignment(teacher, fresh, x, way=way)
    other.load_state_dict(distiller.state_dict())
    assert torch.equal(other.eval()(x, y).total, distiller.eval()(x, y).total)


@pytest.mark.parametrize(("teacher", "student", "way"), [
    ("resnet32x4", "resnet8x4", "two_projections"), ("wrn_40_2", "wrn_16_2", "one_mapping"),
    ("vgg13", "MobileNetV2", "consolidated"), ("ResNet50", "MobileNetV2", "two_projections"),
    ("resnet32x4", "ShuffleV1", "implicit"),
])  # fmt: skip
def test_it_takes_a_step_on_the_fields_pairs(teacher: str, student: str, way: Way) -> None:
    big, small, theirs, ours = cifar_pair(teacher, student)
    distiller = FeatureAlignment(
        big, small, torch.randn(2, 3, 32, 32), way=way, teacher_blocks=theirs, student_blocks=ours
    )
    distiller.zero_grad()
    losses = distiller(torch.randn(2, 3, 32, 32), torch.tensor([3, 9]))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(p.grad is not None for p in distiller.parameters())
    assert all(p.grad is None for p in big.parameters())


def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student, x, _ = pair("maps")
    flat = networks.perceptron(), networks.perceptron(8)
    with pytest.raises(ValueError, match="stage_weights has 1 weights, expected one for each of"):
        FeatureAlignment(teacher, student, x, stage_weights=[1.0])
    for way in ("two_projections", "consolidated"):
        with pytest.raises(
            ValueError, match=rf"way '{way}' compares places, .* after block 1 .* \(student: (8|12) D, teacher: 12 D\)"
        ):
            FeatureAlignment(*flat, torch.randn(2, 3, 4, 4), way=way)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="way is 'sideways', expected one of two_projections, one_mapping"):
        FeatureAlignment(teacher, student, x, way="sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["two_projections", "consolidated"])
def test_maps_of_a_single_place_have_no_attention(way: Way) -> None:
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="the features after block 3 have none in common"):
        FeatureAlignment(networks.Plain(), networks.Plain((3, 4, 5)), x, way=way)


def test_vectors_can_be_mapped() -> None:
    for way in ("one_mapping", "implicit"):
        distiller = FeatureAlignment(networks.perceptron(), networks.perceptron(8), torch.randn(2, 3, 4, 4), way=way)
        assert torch.isfinite(distiller(torch.randn(2, 3, 4, 4), torch.tensor([0, 4])).total)
