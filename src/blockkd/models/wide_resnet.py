"""Wide residual networks for CIFAR: three stages of blocks that normalise and activate before they convolve.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, table 1 (B(3,3) blocks).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.models.layers import conv1x1, conv3x3, global_average, initialise_convolutions


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU, 3×3 convolution, twice, beside a shortcut.

    Maps ``(B, in_channels, H, W) → (B, out_channels, H/stride, W/stride)``. The shortcut is the block's raw
    input. Where the number of channels changes, it is a 1×1 convolution of the normalised and activated input
    instead.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        # This name, and `layer` below, are those of the published checkpoints.
        self.convShortcut = None if in_channels == out_channels else conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out = F.relu(self.bn2(self.conv1(activated)))
        out = self.conv2(self.dropout(out))
        return torch.add(shortcut, out)


class WideResNet(nn.Module):
    """A wide residual network of ``6n + 4`` layers: a stem, three stages of n blocks, a linear classifier.

    The stages are ``16 · width``, ``32 · width`` and ``64 · width`` wide; the second and third halve the
    grid. What leaves a stage is not activated: the next stage's first batch norm and ReLU do that. Works at
    any input size; the field's is 32×32.

    Args:
        depth: number of layers with weights, shortcuts included, ``6n + 4``: 16, 40, ...
        width: widening factor k, 1 or more.
        num_classes: number of logits.
        in_channels: channels of the images.
        dropout: probability of dropping an activation between a block's two convolutions (section 2.4 of the
            paper).

    Raises:
        ValueError: ``depth`` is not ``6n + 4`` with n ≥ 1.
    """

    def __init__(
        self, depth: int, width: int, num_classes: int = 100, in_channels: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth is {depth}, expected 6n + 4 with n ≥ 1 (10, 16, 22, ...)")
        widths = [16 * width, 32 * width, 64 * width]
        self.conv1 = conv3x3(in_channels, 16)
        self.block1 = _stage(16, widths[0], blocks, stride=1, dropout=dropout)
        self.block2 = _stage(widths[0], widths[1], blocks, stride=2, dropout=dropout)
        self.block3 = _stage(widths[1], widths[2], blocks, stride=2, dropout=dropout)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images ``(B, in_channels, H, W)`` → logits ``(B, num_classes)``."""
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        x = F.relu(self.bn1(x))
        logits: Tensor = self.fc(global_average(x))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = PreActivationBlock(in_channels, out_channels, stride, dropout)
    rest = (PreActivationBlock(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))
