"""Laws of OFD, and of cutting before a ReLU."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from blockkd.baselines.overhaul import OFD, NegativeMean, SmallerGrid, partial_l2
from blockkd.baselines.preactivation import cut_before_relu
from blockkd.blocks import Blocks
from blockkd.features import Feature
from blockkd.models import create_model
from blockkd.partitioning import partition
from tests import networks
from tests.baselines.laws import CIFAR_PAIRS, ChannelsLast, check_step, field_pair, tiny
from tests.networks import IMAGE
from tests.oracles import overhaul as oracle
from tests.oracles.features import pooled as averages


@pytest.mark.parametrize(("teacher", "student"), CIFAR_PAIRS)
def test_a_step_on_the_fields_pairs(teacher: str, student: str) -> None:
    theirs, ours, x, y = field_pair(teacher, student)
    check_step(OFD(theirs, ours, x), x, y)


def test_partial_l2_is_that_of_the_equations() -> None:
    torch.manual_seed(0)
    student = torch.randn(3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, 3, 2, dtype=torch.float64)
    margin = -torch.rand(4, dtype=torch.float64)
    values = partial_l2(student, teacher, margin), oracle.partial_l2(student, teacher, margin)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in values))


def test_the_loss_is_that_of_the_equations() -> None:
    teacher, student, x, y = tiny()
    distiller = OFD(teacher, student, x, alpha=0.0, beta=0.3).train()
    twin = copy.deepcopy(distiller)
    losses = distiller(x, y)
    losses.total.backward()
    features, _ = twin.student_features(x)
    theirs, _ = twin.teacher_features(x)
    connected = [connect(value) for connect, value in zip(twin.connectors.values(), features, strict=True)]
    expected = 0.3 * oracle.loss(connected, theirs)
    expected.backward()
    torch.testing.assert_close(losses.total, expected)
    for a, b in zip(distiller.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert losses.terms.keys() == {"feature/block_1", "feature/block_2", "feature/block_3"}


def test_a_silent_teacher_asks_for_silence_and_no_more() -> None:
    teacher, margin = torch.tensor([-5.0, -1.0, 2.0]), torch.tensor([-2.0])
    cases = {(-9.0, -3.0, 2.0): 0.0, (-1.0, -1.0, 2.0): 1.0, (-2.0, 1.0, 2.0): 4.0, (-2.0, -1.0, 0.0): 4.0}
    for student, expected in cases.items():
        shape = (1, 1, 3, 1)
        assert partial_l2(torch.tensor(student).view(shape), teacher.view(shape), margin) == expected


def test_equal_features_cost_nothing_and_order_plays_no_part() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 2, 2).double(), torch.randn(4, 3, 2, 2).double()
    margin = torch.full((3,), -9.0).double()
    assert partial_l2(teacher, teacher, margin) == 0
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(partial_l2(student[order], teacher[order], margin), partial_l2(student, teacher, margin))


def test_half_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    student, teacher = (100 * torch.randn(2, 8, 16, 16)).half(), torch.randn(2, 8, 16, 16).half()
    margin = torch.full((8,), -0.5).half()
    loss = partial_l2(student, teacher, margin)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    torch.testing.assert_close(loss, partial_l2(student.float(), teacher.float(), margin.float()))


def test_margins_are_the_mean_of_all_negative_values_seen() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(3, 2, 2, 5).double() - 0.3 for _ in range(4)]
    batches[0][:, 1] = 1.0  # a channel that is not negative at first
    margins = NegativeMean(2).double()
    assert float(margins(batches[0])[1]) == 0.0
    for batch in batches[1:]:
        found = margins(batch)
    torch.testing.assert_close(found, oracle.margins(torch.cat(batches)))
    kept = found.clone()
    torch.testing.assert_close(margins.eval()(torch.randn(3, 2, 2, 5).double()), kept)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet8", ["layer1.0.add", "layer2.0.add_1", "layer3.0.add_2"]),
        ("wrn_16_1", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("vgg8", ["block0", "block1", "block2", "block4"]),
        ("MobileNetV2", ["blocks.1", "blocks.2", "blocks.4", "conv2.1"]),
    ],
)
def test_cuts_lie_before_the_relu(name: str, expected: list[str]) -> None:
    network, x = create_model(name, num_classes=10), torch.rand(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blocks = cut_before_relu(network, partition(network, x), x, frozen=True)
    assert list(blocks.names) == expected
    assert all(bool((value < 0).any()) for value in blocks.eval().run(x)[0])


def test_relus_that_overwrite_give_the_same_values_without() -> None:
    torch.manual_seed(0)
    network, x = networks.Plain(), torch.randn(4, *IMAGE)
    logits, names = network(x), list(network.state_dict())
    blocks = cut_before_relu(network, partition(network, x), x)
    assert list(blocks.names) == ["stages.0.1", "stages.1.1", "stages.2.1"]
    torch.testing.assert_close(network(x), logits, rtol=0, atol=0)
    assert list(network.state_dict()) == names


class Overwriting(networks.Plain):
    """Its activations cannot be told to leave their input alone."""

    def __init__(self, widths: tuple[int, ...] = (4, 8, 16)) -> None:
        super().__init__(widths)
        for stage in self.stages:
            stage[2] = nn.Identity()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x).relu_()
        return self.head(x.mean((2, 3)))


def test_a_lost_negative_part_is_warned_of() -> None:
    x, y = torch.rand(4, *IMAGE), torch.tensor([0, 1, 2, 3])
    with pytest.warns(UserWarning, match="Overwriting gives no negative value after"):
        distiller = OFD(Overwriting(), networks.Plain(), x)
    check_step(distiller, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OFD(networks.Plain(), Overwriting(), x)


def test_named_cuts_and_blocks_made_by_hand() -> None:
    teacher, student, x, y = tiny()
    named = OFD(teacher, student, x, teacher_blocks=["stages.0", "stages.2"], student_blocks=["stages.1", "stages.2"])
    assert named.teacher_blocks.names == ("stages.0.1", "stages.2.1")
    check_step(named, x, y)
    teacher, student, x, y = tiny()
    blocks = Blocks(list(teacher.stages), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), teacher.head))
    made = OFD(teacher, student, x, teacher_blocks=blocks)
    assert made.teacher_blocks is blocks
    check_step(made, x, y)


def test_another_resolution_and_channels_last() -> None:
    x, y = torch.rand(4, *IMAGE), torch.tensor([0, 1, 2, 3])
    distiller = OFD(networks.Plain((6, 8, 12)), networks.Plain(), x)
    assert distiller(torch.rand(4, 3, 32, 32), y).total.isfinite()
    check_step(OFD(ChannelsLast(6), ChannelsLast(4), x), x, y)


def test_weights_and_features_that_do_not_fit() -> None:
    x, y = torch.rand(4, *IMAGE), torch.tensor([0, 1, 2, 3])
    assert OFD(networks.Plain(), networks.Plain(), x, beta=0.0)(x, y).terms.keys() == {"task/student"}
    with pytest.raises(ValueError, match="OFD needs maps, but Tokens gives 17×16 LD"):
        OFD(networks.Tokens(), networks.Tokens(), x)


@pytest.mark.parametrize(("ours", "theirs"), [(2, 4), (4, 2), (4, 4)])
def test_features_are_compared_on_the_smaller_grid(ours: int, theirs: int) -> None:
    """So that the sum over an example's elements, which the field's weight belongs to, has as many terms."""
    torch.manual_seed(0)
    student = torch.randn(2, 3, ours, ours).double()
    features = Feature((3, ours, ours), "CHW"), Feature((5, theirs, theirs), "CHW")
    connect = SmallerGrid(*features).double()
    learner = connect(student)
    side = min(ours, theirs)
    assert learner.shape == (2, 5, side, side)
    mapped = torch.einsum("bchw,dc->bdhw", averaged(student, side), connect.project.weight[:, :, 0, 0])
    torch.testing.assert_close(learner, connect.norm(mapped))
    connect.fit(Feature((3, 2 * ours, 2 * ours), "CHW"), Feature((5, 2 * theirs, 2 * theirs), "CHW"))
    assert connect(torch.randn(2, 3, 2 * ours, 2 * ours).double()).shape == (2, 5, 2 * side, 2 * side)

    halved = nn.Sequential(nn.MaxPool2d(2), networks.Plain((3, 4, 5)))
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    distiller = OFD(networks.Plain((6, 8, 12)), halved, x, alpha=0.0, beta=1.0)
    twin = copy.deepcopy(distiller)
    inner, outer = twin.student_features(x)[0], twin.teacher_features(x)[0]
    expected = 0.0
    for i in (1, 2, 3):
        target = outer[i - 1]
        expected = expected + oracle.partial_l2(
            twin.connectors[str(i)](inner[i - 1]), averaged(target, target.shape[2] // 2), oracle.margins(target)
        ) / 2 ** (3 - i)
    torch.testing.assert_close(distiller(x, y).total, expected)


def averaged(maps: Tensor, side: int) -> Tensor:
    return averages(maps, side, side) if maps.shape[2] > side else maps
