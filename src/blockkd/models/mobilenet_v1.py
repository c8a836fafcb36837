"""MobileNetV1 for ImageNet, the student of the field's pair ResNet50 → MobileNetV1.

Source: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
arXiv 1704.04861, table 1, at width 1 (4.2 million parameters). The last depthwise convolution has stride 1, as all
implementations do; the table's 2 does not go with its own sizes.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from blockkd.models.layers import conv1x1, conv3x3, global_average

# Of the stem and of the 13 separable convolutions behind it.
CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


class MobileNetV1(nn.Module):
    """A stem, 13 depthwise separable convolutions, a linear classifier.

    For images of 224×224 the grid is 112 behind ``model.1``, 56 behind ``model.3``, 28 behind ``model.5``, 14 behind
    ``model.11`` and 7 behind ``model.13``. Works at any input size. Weights start as PyTorch draws them, as in the
    field's own implementation.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        separable = (_separable(*pair, stride) for pair, stride in zip(pairwise(CHANNELS), STRIDES[1:], strict=True))
        stem = nn.Sequential(*_activated(conv3x3(in_channels, CHANNELS[0], STRIDES[0])))
        self.model = nn.Sequential(stem, *separable)
        self.fc = nn.Linear(CHANNELS[-1], num_classes)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images ``(B, in_channels, H, W)`` → logits ``(B, num_classes)``."""
        logits: Tensor = self.fc(global_average(self.model(images)))
        return logits


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Each channel by its own 3×3 convolution, then all by 1×1: the paper's figure 3, right."""
    depthwise = conv3x3(in_channels, in_channels, stride, groups=in_channels)
    return nn.Sequential(*_activated(depthwise), *_activated(conv1x1(in_channels, out_channels)))


def _activated(convolution: nn.Conv2d) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
