"""VGG networks with batch norm for CIFAR: five stages of 3×3 convolutions, a linear classifier.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, table 1 (configurations A, B,
D, E). Batch norm, global average pooling, the single linear layer in place of the paper's three, and VGG8
(one convolution a stage) are the distillation field's. The names still count the paper's three linear layers.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.models.layers import global_average, initialise_convolutions, initialise_linear

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Five stages 64, 128, 256, 512 and 512 wide, max pooling between the first four, a linear classifier.

    The fourth and fifth stage see the same grid (4×4 for images of 32×32). Works at any input size from 8×8
    on.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: number of logits.
        in_channels: channels of the images.
        pool_before_last: also halve the grid before the fifth stage, as the field does for images of 64×64.

    Raises:
        ValueError: no VGG of that ``depth`` is known.
    """

    def __init__(
        self, depth: int, num_classes: int = 100, in_channels: int = 3, pool_before_last: bool = False
    ) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth is {depth}, expected one of {', '.join(map(str, CONVOLUTIONS))}")
        counts = CONVOLUTIONS[depth]
        self.block0 = _stage(in_channels, WIDTHS[0], counts[0])
        self.block1 = _stage(WIDTHS[0], WIDTHS[1], counts[1])
        self.block2 = _stage(WIDTHS[1], WIDTHS[2], counts[2])
        self.block3 = _stage(WIDTHS[2], WIDTHS[3], counts[3])
        self.block4 = _stage(WIDTHS[3], WIDTHS[4], counts[4])
        self.pool = nn.MaxPool2d(2)
        self.last_pool = nn.MaxPool2d(2) if pool_before_last else nn.Identity()
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        initialise_convolutions(self)
        initialise_linear(self.classifier)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images ``(B, in_channels, H, W)`` → logits ``(B, num_classes)``."""
        x = F.relu(self.block0(images))
        x = F.relu(self.block1(self.pool(x)))
        x = F.relu(self.block2(self.pool(x)))
        x = F.relu(self.block3(self.pool(x)))
        x = F.relu(self.block4(self.last_pool(x)))
        logits: Tensor = self.classifier(global_average(x))
        return logits


def _stage(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    """Convolutions (with bias) and batch norms, with a ReLU between each two but not at the end."""
    layers: list[nn.Module] = []
    for channels in [in_channels] + [out_channels] * (convolutions - 1):
        if layers:
            layers.append(nn.ReLU())
        layers += [nn.Conv2d(channels, out_channels, kernel_size=3, padding=1), nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers)
