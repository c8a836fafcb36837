"""The networks are the field's: the same names, shapes, counts, stages and logits."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from blockkd import costs
from blockkd.models import NETWORKS, VGG, MobileNetV1, ResNet, WideResNet, create_model
from tests.models.fingerprint import fingerprint
from tests.models.shared_data import data_file

PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "ResNet18": 11_220_132,
    "ResNet50": 23_705_252,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "MobileNetV1": 3_309_476,
    "MobileNetV2": 812_836,
    "ShuffleV1": 949_258,
    "ShuffleV2": 1_355_528,
}

# What `fingerprint` gives for mdistiller's networks, which are RepDistiller's (computed with their code).
FINGERPRINTS = {
    "resnet8": (-0.39516559, -0.76298881, 5.3682451),
    "resnet14": (-1.4045754, -1.9998273, 13.454503),
    "resnet20": (-0.57264076, -0.92240529, 4.5979241),
    "resnet32": (-1.3334006, -0.041409108, 9.1451906),
    "resnet44": (0.18720776, -0.2300212, 7.3955393),
    "resnet56": (-0.23102342, 0.92175688, 10.067416),
    "resnet110": (-0.21404088, -0.093777901, 3.8669285),
    "resnet8x4": (-0.89320788, 0.9463277, 11.876988),
    "resnet32x4": (0.87525784, -1.6846958, 15.257399),
    "ResNet18": (4.5212706, -3.52609, 57.926396),
    "ResNet50": (106.40043, -81.781028, 678.56394),
    "wrn_16_1": (-0.7026961, -0.95056063, 6.4366429),
    "wrn_16_2": (-1.1939699, -0.047418542, 9.3224292),
    "wrn_40_1": (-0.85329436, -0.69467065, 6.4075839),
    "wrn_40_2": (-1.2633186, -0.28812082, 7.8696828),
    "vgg8": (-1.1721522, -0.34005328, 10.396777),
    "vgg11": (-0.93165654, -0.16907685, 10.396331),
    "vgg13": (-0.99385113, -0.17692113, 10.608388),
    "vgg16": (-0.79292362, -0.3348483, 10.565221),
    "vgg19": (-0.77179832, -1.8691359, 21.584863),
    "MobileNetV2": (-4.0148151, -4.8254056, 48.069465),
    "ShuffleV1": (0.74177232, -0.84568153, 47.976206),
    "ShuffleV2": (2.0131273, 4.0293482, 28.287247),
}

# The modules whose outputs have the shapes that are listed in the field's key file.
STAGES = {
    "resnet": ("bn1", "layer1", "layer2", "layer3"),
    "ResNet": ("bn1", "layer1", "layer2", "layer3", "layer4"),
    "wrn": ("conv1", "block1", "block2", "block3"),
    "vgg": ("block0", "block1", "block2", "block3", "block4"),
    "MobileNetV2": ("conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6"),
    "Shuffle": ("bn1", "layer1", "layer2", "layer3"),
}

every_network = pytest.mark.parametrize("name", NETWORKS)
every_cifar_network = pytest.mark.parametrize("name", FINGERPRINTS)


def on_meta(name: str, **options: Any) -> nn.Module:
    """The network without memory or arithmetic: shapes only."""
    with torch.device("meta"):
        return create_model(name, **options)


def shapes_after(network: nn.Module, modules: tuple[str, ...], images: Tensor) -> list[list[int]]:
    """The shapes ``[C, H, W]`` of what ``modules`` return."""
    shapes: dict[str, list[int]] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: shapes.update({name: list(output.shape[1:])})

    for name in modules:
        network.get_submodule(name).register_forward_hook(keep(name))
    network(images)
    return [shapes[name] for name in modules]


def published() -> Mapping[str, Any]:
    keys: Mapping[str, Any] = json.loads(data_file("cifar_checkpoint_keys.json").read_text())
    return keys


def test_names_are_the_fields() -> None:
    assert set(NETWORKS) == {*published(), "MobileNetV1"}


@every_network
def test_parameter_count(name: str) -> None:
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == PARAMETERS[name]


@every_cifar_network
def test_names_and_shapes_are_those_of_the_published_checkpoints(name: str) -> None:
    expected = published()[name]["state_dict"]
    assert {key: list(value.shape) for key, value in on_meta(name).state_dict().items()} == expected


@every_cifar_network
def test_stages_have_the_published_shapes(name: str) -> None:
    modules = next(modules for family, modules in STAGES.items() if name.startswith(family))
    images = torch.empty(2, 3, 32, 32, device="meta")
    assert shapes_after(on_meta(name), modules, images) == published()[name]["stage_shapes"]


@every_cifar_network
def test_logits_are_those_of_the_original_network(name: str) -> None:
    assert fingerprint(create_model(name)) == pytest.approx(FINGERPRINTS[name], rel=1e-6)


def test_mobilenet_v1_is_the_fields_for_imagenet() -> None:
    """Its logits are those of mdistiller's network under the same names (computed with their code, at 224×224)."""
    assert sum(parameter.numel() for parameter in MobileNetV1().parameters()) == 4_231_976
    assert fingerprint(MobileNetV1(), size=224) == pytest.approx((9.1992492, 9.0011849, 171.29703), rel=1e-6)
    with torch.device("meta"):
        stages = ("model.1", "model.3", "model.5", "model.11", "model.13")
        shapes = shapes_after(MobileNetV1(), stages, torch.empty(1, 3, 224, 224))
    assert shapes == [[64, 112, 112], [128, 56, 56], [256, 28, 28], [512, 14, 14], [1024, 7, 7]]


def test_mobilenet_v1_has_the_papers_size_and_cost() -> None:
    """Table 4 of the paper: 4.2 million parameters, 569 million multiply-adds."""
    with torch.device("meta"):
        network, images = MobileNetV1(), torch.empty(1, 3, 224, 224)
    assert round(costs.parameters(network) / 1e6, 1) == 4.2
    assert round(costs.flops(network, images) / 2e6) == 569


@every_network
def test_trains(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name, num_classes=5).train()
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 4])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.autograd.backward(F.cross_entropy(network(images), labels))
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    torch.optim.SGD(network.parameters(), lr=1e-3).step()
    after = network.state_dict()
    moved = [key for key in before if before[key].ndim > 1 and not torch.equal(before[key], after[key])]
    assert moved == [key for key in before if before[key].ndim > 1]


@every_network
@pytest.mark.parametrize("size", [24, 64])
def test_any_input_size_class_count_and_channels(name: str, size: int) -> None:
    network = on_meta(name, num_classes=7, in_channels=1)
    assert network(torch.empty(2, 1, size, size, device="meta")).shape == (2, 7)


@every_network
def test_plain_fx_follows_the_network(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(fx.symbolic_trace(network)(images), network(images), rtol=0, atol=0)


@every_network
def test_no_output_of_a_module_is_changed_in_place(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name).eval()
    kept: list[tuple[str, Tensor, Tensor]] = []

    def keep(key: str) -> Any:
        return lambda _module, _inputs, output: kept.append((key, output, output.clone()))

    for key, module in network.named_modules():
        module.register_forward_hook(keep(key))
    with torch.no_grad():
        network(torch.randn(1, 3, 16, 16))
    assert [key for key, output, copy in kept if not torch.equal(output, copy)] == []


@pytest.mark.parametrize("size", [8, 15, 32, 48])
def test_resnet_on_small_grey_images(size: int) -> None:
    network = ResNet(8, widths=(4, 4, 8, 16), num_classes=10, in_channels=1)
    assert network(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_pooling_at_32_is_the_fields_average_over_8() -> None:
    torch.manual_seed(0)
    network = ResNet(8).eval()
    features: list[Tensor] = []
    network.layer3.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    logits = network(torch.randn(4, 3, 32, 32))
    torch.testing.assert_close(logits, network.fc(F.avg_pool2d(features[0], 8).flatten(1)))


@pytest.mark.parametrize("name", ["resnet20", "ResNet18", "wrn_16_2", "vgg11", "MobileNetV2"])
def test_convolutions_start_as_kaiming_says(name: str) -> None:
    torch.manual_seed(0)
    for key, module in create_model(name).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            kernel = module.kernel_size[0] * module.kernel_size[1]
            expected = (2 / (kernel * module.out_channels)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.06), key
            assert module.bias is None or not module.bias.any(), key


def test_dropout_of_wide_resnets_acts_in_training_only() -> None:
    torch.manual_seed(0)
    network = create_model("wrn_16_1", dropout=0.5)
    images = torch.randn(4, 3, 16, 16)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))
    assert network.state_dict().keys() == create_model("wrn_16_1").state_dict().keys()


def test_vgg_for_64_pools_once_more() -> None:
    images = torch.empty(1, 3, 64, 64, device="meta")
    with torch.device("meta"):
        plain, pooled = VGG(8), VGG(8, pool_before_last=True)
    assert shapes_after(plain, ("block3", "block4"), images) == [[512, 8, 8], [512, 8, 8]]
    assert shapes_after(pooled, ("block3", "block4"), images) == [[512, 8, 8], [512, 4, 4]]


@pytest.mark.parametrize("depth", [2, 21, 0, -4])
def test_impossible_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth is {depth}, expected 6n \\+ 2"):
        ResNet(depth)
    with pytest.raises(ValueError, match=f"depth is {depth}, expected 6n \\+ 4"):
        WideResNet(depth, 1)
    with pytest.raises(ValueError, match=f"depth is {depth}, expected one of 8, 11"):
        VGG(depth)
