"""The field's networks, written as plain classifiers: images in, logits out; and those of other libraries by name.

The names and shapes of their parameters and buffers are those of the checkpoints that RepDistiller and
mdistiller publish, so these load as they are.
"""

from blockkd.models.create import create_model
from blockkd.models.four_stage_resnet import FourStageResNet
from blockkd.models.mobilenet import MobileNetV2
from blockkd.models.mobilenet_v1 import MobileNetV1
from blockkd.models.named import Named
from blockkd.models.resnet import ResNet
from blockkd.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from blockkd.models.vgg import VGG
from blockkd.models.weights import load_weights, read_state_dict
from blockkd.models.wide_resnet import WideResNet
from blockkd.models.zoo import NETWORKS

__all__ = [
    "NETWORKS",
    "VGG",
    "FourStageResNet",
    "MobileNetV1",
    "MobileNetV2",
    "Named",
    "ResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "WideResNet",
    "create_model",
    "load_weights",
    "read_state_dict",
]
