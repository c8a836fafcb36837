"""The thin ResNets for CIFAR: three stages of basic blocks.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2. Two things are the
distillation field's and not the paper's: shortcuts that change the shape are 1×1 convolutions (the paper pads
with zeros), and in the "x4" networks the stem is wider too (32 channels, then 64, 128, 256).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.models.layers import conv3x3, global_average, initialise_convolutions, projection


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut.

    Maps ``(B, in_channels, H, W) → (B, out_channels, H/stride, W/stride)``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class ResNet(nn.Module):
    """A residual network of ``6n + 2`` layers: a stem, three stages of n basic blocks, a linear classifier.

    The second and third stage halve the grid. Works at any input size; the field's is 32×32.

    Args:
        depth: number of layers with weights on the longest path, ``6n + 2``: 8, 14, 20, 32, 44, 56, 110.
        widths: channels of the stem and of the three stages.
        num_classes: number of logits.
        in_channels: channels of the images.

    Raises:
        ValueError: ``depth`` is not ``6n + 2`` with n ≥ 1.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        num_classes: int = 100,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth is {depth}, expected 6n + 2 with n ≥ 1 (8, 14, 20, ...)")
        stem, *stages = widths
        self.conv1 = conv3x3(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, stages[0], blocks, stride=1)
        self.layer2 = _stage(stages[0], stages[1], blocks, stride=2)
        self.layer3 = _stage(stages[1], stages[2], blocks, stride=2)
        self.fc = nn.Linear(stages[2], num_classes)
        initialise_convolutions(self)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images ``(B, in_channels, H, W)`` → logits ``(B, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(global_average(x))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))
