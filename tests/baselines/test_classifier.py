"""Laws of SimKD and CAT-KD, and of finding the final linear layer and the map before it."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.classifier import (
    CATKD,
    SimKD,
    class_activation_maps,
    class_attention,
    cut_before_pooling,
    feature_regression,
    final_linear,
)
from blockkd.distiller import Distiller
from blockkd.export import save_student
from blockkd.models import create_model
from tests import networks
from tests.networks import IMAGE
from tests.oracles import classifier as oracle

PAIRS = [
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("vgg13", "MobileNetV2"),
    ("ResNet50", "MobileNetV2"),
    ("resnet32x4", "ShuffleV1"),
]


def tiny_pair(dtype: torch.dtype = torch.float64) -> tuple[networks.Plain, networks.Plain, Tensor, Tensor]:
    torch.manual_seed(0)
    teacher, student = networks.Plain((6, 8, 12)).to(dtype), networks.Plain((3, 4, 5)).to(dtype)
    return teacher, student, torch.randn(4, *IMAGE, dtype=dtype), torch.tensor([0, 3, 4, 1])


def field_pair(teacher: str, student: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    networks = (create_model(name, num_classes=10) for name in (teacher, student))
    return *networks, torch.rand(2, 3, 32, 32), torch.tensor([0, 9])  # type: ignore[return-value]


def check_step(distiller: Distiller, x: Tensor, y: Tensor, **context: Tensor) -> None:
    """One step: gradients reach all that learns, the teacher stays as it is, the state can be saved and loaded."""
    assert distiller.teacher is not None
    before = copy.deepcopy(distiller.teacher.state_dict())
    twin = copy.deepcopy(distiller)
    optimizer = torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=1e-6)
    distiller.train()
    distiller.teacher.train()  # which someone may do by mistake
    losses = distiller(x, y, **context)
    losses.total.backward()
    optimizer.step()

    assert losses.logits.shape == distiller.teacher(x).shape
    assert all(term.isfinite() for term in losses.terms.values())
    learning = {name: p.grad for name, p in distiller.named_parameters() if p.requires_grad}
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in learning.values())
    groups = {name.split(".")[0] for name in learning}
    reached = {name.split(".")[0] for name, grad in learning.items() if grad is not None and grad.any()}
    assert reached == groups
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.parameters())
    assert not distiller.teacher.training
    assert all(torch.equal(value, before[name]) for name, value in distiller.teacher.state_dict().items())

    held = {id(p) for p in distiller.parameters()}
    assert not held & {id(p) for p in distiller.teacher.parameters()}
    twin.load_state_dict(distiller.state_dict())
    results = []
    for one in (distiller, twin):
        one.eval().set_epoch(3)
        torch.manual_seed(1)
        results.append(one(x, y, **context).total)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_step_on_the_fields_pairs(teacher: str, student: str) -> None:
    theirs, ours, x, y = field_pair(teacher, student)
    check_step(CATKD(theirs, copy.deepcopy(ours), x), x, y)
    check_step(SimKD(theirs, ours, x), x, y)


@pytest.mark.parametrize("method", [SimKD, CATKD])
def test_a_step_on_tiny_networks(method: Callable[..., Distiller]) -> None:
    teacher, student, x, y = tiny_pair()
    check_step(method(teacher, student, x), x, y)


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
    teacher, student, x, y = tiny_pair()
    options = {"resolution": resolution, "normalize": normalize}
    losses = CATKD(teacher, student, x, alpha=0.5, beta=30.0, **options).train()(x, y)  # type: ignore[arg-type]
    twin = copy.deepcopy(student).train()
    torch.testing.assert_close(losses.terms["task/student"], 0.5 * F.cross_entropy(twin(x), y))
    ours, theirs = (nn.Sequential(*network.stages)(x) for network in (twin, teacher))
    weights = student.head.weight, teacher.head.weight
    expected = oracle.class_attention(ours, weights[0], theirs, weights[1], resolution, normalize)
    torch.testing.assert_close(losses.terms["distill/cam"], 30 * expected)
    assert losses.terms.keys() == {"task/student", "distill/cam"}


def test_class_attention_does_not_see_the_size_of_maps_and_vanishes_for_equals() -> None:
    torch.manual_seed(0)
    maps, others = torch.randn(2, 5, 2, 2, dtype=torch.float64), torch.randn(2, 5, 2, 2, dtype=torch.float64)
    scales = torch.rand(2, 5, 1, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(class_attention(scales * maps, others), class_attention(maps, others))
    assert class_attention(maps, 3 * maps) < 1e-12
    assert class_attention(2 * maps, maps, normalize=False) > 0.1


def test_the_maps_average_to_the_logits_without_bias() -> None:
    teacher, _, x, _ = tiny_pair()
    blocks, linear = cut_before_pooling(teacher, x), final_linear(teacher, x)
    (feature,), logits = blocks.eval().run(x)
    maps = class_activation_maps(feature, linear.weight, 1)
    torch.testing.assert_close(maps.flatten(1) + linear.bias, logits)


def test_feature_regression_is_the_mean_square() -> None:
    torch.manual_seed(0)
    a = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    values = feature_regression(a, b), oracle.feature_regression(a, b)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, a)[0] for value in values))
    assert feature_regression(a, a) == 0


@pytest.mark.parametrize("loss", [feature_regression, class_attention])
def test_half_precision_is_computed_in_float32(loss: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(2, 3, 2, 2, dtype=torch.float64).half() * 300 for _ in range(2))
    if loss is class_attention:
        eye = torch.eye(3)
        a, b = (class_activation_maps(maps, eye.half(), 2) for maps in (a, b))
    assert loss(a, b).dtype == torch.float32
    torch.testing.assert_close(loss(a, b), loss(a.float(), b.float()))


def test_simkd_learns_the_teachers_pooled_map_and_nothing_else() -> None:
    teacher, student, x, y = tiny_pair()
    distiller = SimKD(teacher, student, x, weight=2.0)
    twin = copy.deepcopy(distiller)
    losses = distiller(x, y)
    projected = twin.student.projected(x)
    (feature,), _ = twin.teacher_features(x)
    torch.testing.assert_close(losses.total, 2 * oracle.feature_regression(projected, feature))
    torch.testing.assert_close(losses.total, distiller(x, (y + 1) % 5).total)  # labels play no part


@pytest.mark.parametrize("names", [("resnet8", "ShuffleV1"), ("MobileNetV2", "vgg8"), ("vgg8", "MobileNetV2")])
def test_the_larger_grid_is_averaged_down(names: tuple[str, str]) -> None:
    teacher, student, x, y = field_pair(*names)
    distiller = SimKD(teacher, student, x)
    grids = [blocks.features[0].grid for blocks in (distiller.student_blocks, distiller.teacher_blocks)]
    assert tuple(distiller.student.projected(x).shape[2:]) == min(grids)
    assert distiller(x, y).total.isfinite()
    larger = torch.rand(2, 3, 64, 64)  # another resolution keeps the proportion
    assert tuple(distiller.student.projected(larger).shape[2:]) == tuple(2 * n for n in min(grids))
    assert distiller(larger, y[:2]).total.isfinite()


def test_what_is_deployed_is_body_projector_and_the_teachers_classifier() -> None:
    teacher, student, x, y = tiny_pair()
    distiller = SimKD(teacher, student, x)
    own = student.head.weight.clone()
    check_step(distiller, x, y)
    network = distiller.deployable()
    assert network is distiller.student
    assert {name.split(".")[0] for name in network.state_dict()} == {"network", "projector", "classifier"}
    assert torch.equal(network.classifier.weight, teacher.head.weight)
    assert torch.equal(student.head.weight, own)
    assert not network.classifier.weight.requires_grad
    assert not student.head.weight.requires_grad
    network.eval()
    logits = distiller(x, y).logits
    torch.testing.assert_close(network(x), logits)
    assert network.projector.layers[0].training is False


def test_the_deployable_works_alone_after_a_copy_and_is_what_is_saved(tmp_path: Path) -> None:
    teacher, student, x, _ = tiny_pair(torch.float32)
    distiller = SimKD(teacher, student, x).eval()
    expected = distiller.student(x)
    alone = copy.deepcopy(distiller.deployable())
    with torch.no_grad():
        for parameter in (*teacher.parameters(), *student.parameters()):
            parameter.zero_()
    torch.testing.assert_close(alone(x), expected)
    path = save_student(distiller, tmp_path / "student.safetensors")
    assert load_file(path).keys() == distiller.student.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_the_map_before_pooling_is_found(name: str) -> None:
    network = create_model(name, num_classes=10).eval()
    x = torch.rand(2, 3, 32, 32)
    blocks = cut_before_pooling(network, torch.zeros(2, 3, 32, 32))  # a blank example is enough
    (feature,), logits = blocks.run(x)
    linear = final_linear(network, x)
    torch.testing.assert_close(linear(feature.mean((2, 3))), logits)


class ChannelsLast(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Conv2d(3, width, 3, 2, 1), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(self.embed(x).permute(0, 2, 3, 1)))
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize("method", [SimKD, CATKD])
def test_maps_with_channels_last(method: Callable[..., Distiller]) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(4, *IMAGE), torch.tensor([0, 3, 4, 1])
    check_step(method(ChannelsLast(6), ChannelsLast(4), x), x, y)
    check_step(method(ChannelsLast(6), networks.Plain((4, 5, 6)), x), x, y)


class TwoLayerHead(networks.Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2.0


class NormBehindPooling(networks.Plain):
    """As ConvNeXt ends."""

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(F.layer_norm(x.mean((2, 3)), (x.shape[1],)))


class GlobalMaximum(nn.Module):
    """On a blank image its maximum over the places is their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).amax((2, 3)))


@pytest.mark.parametrize("network", [NormBehindPooling(), GlobalMaximum()])
def test_no_other_pooling_is_taken_for_an_average(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="does not end in global average pooling and one linear layer: no map"):
        cut_before_pooling(network, torch.zeros(2, *IMAGE))


@pytest.mark.parametrize("method", [SimKD, CATKD])
@pytest.mark.parametrize("network", [networks.Functional(), networks.Tokens(), networks.perceptron()])
def test_networks_of_another_form_are_told_so(method: Callable[..., Distiller], network: nn.Module) -> None:
    shape = (3, 4, 4) if isinstance(network, nn.Sequential) else IMAGE
    x = torch.rand(4, *shape)
    with pytest.raises(ValueError, match="does not end in global average pooling and one linear layer"):
        method(network, networks.Plain(), x)


def test_logits_that_no_linear_layer_gives_are_told_so() -> None:
    with pytest.raises(ValueError, match="TwoLayerHead gives logits that are not the output of one linear layer"):
        CATKD(networks.Plain(), TwoLayerHead(), torch.rand(2, *IMAGE))


def test_bad_options_are_told_so() -> None:
    teacher, student, x, _ = tiny_pair()
    with pytest.raises(ValueError, match="reduction is 13, expected 1 … 12"):
        SimKD(teacher, student, x, reduction=13)
    with pytest.raises(ValueError, match=r"weight is 0\.0, expected above zero"):
        SimKD(teacher, student, x, weight=0.0)
    with pytest.raises(ValueError, match="resolution is 0"):
        CATKD(teacher, student, x, resolution=0)
    with pytest.raises(ValueError, match="the student tells 7 classes apart and the teacher 5"):
        CATKD(teacher, networks.Plain(classes=7).double(), x)
