"""The names of the networks, as the distillation field writes them."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from blockkd.models.four_stage_resnet import BasicBlock, Bottleneck, FourStageResNet
from blockkd.models.mobilenet import MobileNetV2
from blockkd.models.mobilenet_v1 import MobileNetV1
from blockkd.models.resnet import ResNet
from blockkd.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from blockkd.models.vgg import VGG
from blockkd.models.wide_resnet import WideResNet

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet8": partial(ResNet, depth=8),
    "resnet14": partial(ResNet, depth=14),
    "resnet20": partial(ResNet, depth=20),
    "resnet32": partial(ResNet, depth=32),
    "resnet44": partial(ResNet, depth=44),
    "resnet56": partial(ResNet, depth=56),
    "resnet110": partial(ResNet, depth=110),
    "resnet8x4": partial(ResNet, depth=8, widths=(32, 64, 128, 256)),
    "resnet32x4": partial(ResNet, depth=32, widths=(32, 64, 128, 256)),
    "ResNet18": partial(FourStageResNet, block=BasicBlock, blocks=(2, 2, 2, 2)),
    "ResNet50": partial(FourStageResNet, block=Bottleneck, blocks=(3, 4, 6, 3)),
    "wrn_16_1": partial(WideResNet, depth=16, width=1),
    "wrn_16_2": partial(WideResNet, depth=16, width=2),
    "wrn_40_1": partial(WideResNet, depth=40, width=1),
    "wrn_40_2": partial(WideResNet, depth=40, width=2),
    "vgg8": partial(VGG, depth=8),
    "vgg11": partial(VGG, depth=11),
    "vgg13": partial(VGG, depth=13),
    "vgg16": partial(VGG, depth=16),
    "vgg19": partial(VGG, depth=19),
    "MobileNetV1": MobileNetV1,
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
}
