"""ShuffleNetV1 and V2 for CIFAR.

Sources: V1: Zhang et al., "ShuffleNet", CVPR 2018, table 1 (3 groups); V2: Ma et al., "ShuffleNet V2", ECCV
2018, table 5 (1×). For images of 32×32 the stem is one 1×1 convolution of stride 1 without max pooling, so
the three stages end at grids of 16, 8 and 4. Where the distillation field's networks differ from the papers
in other things, the lines below say so. Weights start as PyTorch draws them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.models.layers import conv1x1, conv3x3, global_average, shuffle_channels

STEM_CHANNELS = 24
BLOCKS = (4, 8, 4)


class GroupedUnit(nn.Module):
    """A unit of ShuffleNetV1 (Fig. 2): grouped 1×1, shuffle, depthwise 3×3, grouped 1×1, beside a shortcut.

    At stride 1 the shortcut is added. At stride 2 the input, average-pooled, fills the last ``in_channels``
    of the ``out_channels``. Maps ``(B, in_channels, H, W) → (B, out_channels, H/stride, W/stride)``.

    Args:
        squeeze_groups: groups of the first convolution, and of the shuffle after it.
        groups: groups of the last convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, squeeze_groups: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        self.squeeze_groups = squeeze_groups
        branch = out_channels - in_channels if stride == 2 else out_channels
        hidden = branch // 4  # a quarter of the branch; the paper takes a quarter of out_channels
        self.conv1 = conv1x1(in_channels, hidden, groups=squeeze_groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv3x3(hidden, hidden, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, branch, groups=groups)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = shuffle_channels(out, self.squeeze_groups)
        out = F.relu(self.bn2(self.conv2(out)))  # the paper has no ReLU here
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))


class ShuffleNetV1(nn.Module):
    """A stem of 24 channels, three stages of 4, 8 and 4 units, a linear classifier. Works at any input size.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        groups: groups of the 1×1 convolutions.
        widths: channels of the three stages.
    """

    def __init__(
        self,
        num_classes: int = 100,
        in_channels: int = 3,
        groups: int = 3,
        widths: tuple[int, int, int] = (240, 480, 960),
    ) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, STEM_CHANNELS)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        # The stem gives too few channels to group, so the first unit's first convolution is dense.
        self.layer1 = _grouped_stage(STEM_CHANNELS, widths[0], BLOCKS[0], squeeze_groups=1, groups=groups)
        self.layer2 = _grouped_stage(widths[0], widths[1], BLOCKS[1], squeeze_groups=groups, groups=groups)
        self.layer3 = _grouped_stage(widths[1], widths[2], BLOCKS[2], squeeze_groups=groups, groups=groups)
        self.linear = nn.Linear(widths[2], num_classes)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images ``(B, in_channels, H, W)`` → logits ``(B, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(global_average(x))
        return logits


def _grouped_stage(in_channels: int, out_channels: int, blocks: int, squeeze_groups: int, groups: int) -> nn.Sequential:
    first = GroupedUnit(in_channels, out_channels, 2, squeeze_groups, groups)
    rest = (GroupedUnit(out_channels, out_channels, 1, groups, groups) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class SplitUnit(nn.Module):
    """A unit of ShuffleNetV2 (Fig. 3c): half of the channels pass, the rest are convolved, all are shuffled.

    Keeps the shape ``(B, channels, H, W)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)))
        return shuffle_channels(torch.cat([kept, out], dim=1), groups=2)


class DownUnit(nn.Module):
    """The unit that halves the grid (Fig. 3d): both branches are convolved.

    Maps ``(B, in_channels, H, W) → (B, out_channels, H/2, W/2)``. ``conv1`` and ``conv2`` are the left
    branch, which has one depthwise convolution; ``conv3`` to ``conv5`` are the right one, of the form of
    ``SplitUnit``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv3x3(in_channels, in_channels, stride=2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffle_channels(torch.cat([left, right], dim=1), groups=2)


class ShuffleNetV2(nn.Module):
    """A stem of 24 channels, three stages of 4, 8 and 4 units, a 1×1 convolution, a linear classifier.

    Works at any input size.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        widths: channels of the three stages (even numbers) and of the last convolution.
    """

    def __init__(
        self,
        num_classes: int = 100,
        in_channels: int = 3,
        widths: tuple[int, int, int, int] = (116, 232, 464, 1024),
    ) -> None:
        super().__init__()
        *stages, head = widths
        self.conv1 = conv1x1(in_channels, STEM_CHANNELS)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1 = _split_stage(STEM_CHANNELS, stages[0], BLOCKS[0])
        self.layer2 = _split_stage(stages[0], stages[1], BLOCKS[1])
        self.layer3 = _split_stage(stages[1], stages[2], BLOCKS[2])
        self.conv2 = conv1x1(stages[2], head)
        self.bn2 = nn.BatchNorm2d(head)
        self.linear = nn.Linear(head, num_classes)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images ``(B, in_channels, H, W)`` → logits ``(B, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(global_average(x))
        return logits


def _split_stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    rest = (SplitUnit(out_channels) for _ in range(blocks - 1))
    return nn.Sequential(DownUnit(in_channels, out_channels), *rest)
