"""ResNet18 and ResNet50 for 32×32 images: the four stages of the ImageNet networks behind a 3×3 stem.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1. For small images the
stem is one 3×3 convolution of stride 1 and there is no max pooling, so the four stages see grids of 32, 16, 8
and 4.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.models.layers import conv1x1, conv3x3, global_average, initialise_convolutions, projection


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: ``(B, in_channels, H, W) → (B, width, H/stride, W/stride)``."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 beside a shortcut: ``(B, in_channels, H, W) → (B, 4 · width, H/stride, W/stride)``."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


class FourStageResNet(nn.Module):
    """A stem, four stages of residual blocks 64, 128, 256, 512 wide, a linear classifier.

    Stages two to four halve the grid. Works at any input size.

    Args:
        block: ``BasicBlock`` (ResNet18) or ``Bottleneck`` (ResNet50), whose outputs are four times as wide.
        blocks: number of blocks in each stage.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int = 100,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        out = block.expansion
        self.conv1 = conv3x3(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * out, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * out, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * out, 512, blocks[3], stride=2)
        self.linear = nn.Linear(512 * out, num_classes)
        initialise_convolutions(self)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images ``(B, in_channels, H, W)`` → logits ``(B, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(global_average(x))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, width, stride)
    rest = (block(block.expansion * width, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
