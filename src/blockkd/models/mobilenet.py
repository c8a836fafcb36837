"""MobileNetV2 for CIFAR.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2. For
images of 32×32 the second group keeps its grid (stride 1, the paper has 2), and there is no dropout before
the classifier.
"""

from jaxtyping import Float
from torch import Tensor, nn

from blockkd.models.layers import (
    conv1x1,
    conv3x3,
    global_average,
    initialise_convolutions,
    initialise_linear,
)

# A row a group: channels at full width, blocks, stride of the first block.
GROUPS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
HEAD_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """Expand by 1×1, filter each channel by 3×3, project back by 1×1 without activation.

    Maps ``(B, in_channels, H, W) → (B, out_channels, H/stride, W/stride)``; the input is added where shapes
    agree.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *_activated(conv1x1(in_channels, hidden)),
            *_activated(conv3x3(hidden, hidden, stride, groups=hidden)),
            conv1x1(hidden, out_channels),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """A stem of stride 2, seven groups of inverted residuals (``blocks.0`` … ``.6``), a linear classifier.

    For images of 32×32 the groups end at grids of 16, 16, 8, 4, 4, 2 and 2. Works at any input size.

    Args:
        width: factor on all channels but the last 1280, which only grow with it; the field's student has 0.5.
        expansion: how many times wider a block is inside (t in the paper); the first group has 1.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, width: float = 0.5, expansion: int = 6, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*_activated(conv3x3(in_channels, channels, stride=2)))
        groups = []
        for index, (full_channels, blocks, stride) in enumerate(GROUPS):
            out_channels = int(full_channels * width)
            groups.append(_group(channels, out_channels, blocks, stride, expansion if index else 1))
            channels = out_channels
        self.blocks = nn.Sequential(*groups)
        head = int(HEAD_CHANNELS * max(width, 1.0))
        self.conv2 = nn.Sequential(*_activated(conv1x1(channels, head)))
        classifier = nn.Linear(head, num_classes)
        self.classifier = nn.Sequential(classifier)
        initialise_convolutions(self)
        initialise_linear(classifier)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images ``(B, in_channels, H, W)`` → logits ``(B, num_classes)``."""
        x = self.conv2(self.blocks(self.conv1(images)))
        logits: Tensor = self.classifier(global_average(x))
        return logits


def _group(in_channels: int, out_channels: int, blocks: int, stride: int, expansion: int) -> nn.Sequential:
    first = InvertedResidual(in_channels, out_channels, stride, expansion)
    rest = (InvertedResidual(out_channels, out_channels, 1, expansion) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _activated(convolution: nn.Conv2d) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
