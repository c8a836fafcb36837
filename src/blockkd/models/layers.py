"""What the CIFAR networks share: convolutions, initialisation, pooling, channel shuffle."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1×1 convolution without bias, ``(B, in_channels, H, W) → (B, out_channels, H/stride, W/stride)``."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, groups=groups, bias=False)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """The same with a 3×3 kernel, zero-padded by 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut of a residual block: the identity where shapes agree, else 1×1 convolution + batch norm.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, eq. 1 and 2 (option B).
    """
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def global_average(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
    """The mean over the grid, of any size: ``(B, C, H, W) → (B, C)``."""
    return features.mean(dim=(2, 3))


def shuffle_channels(features: Float[Tensor, "B C H W"], groups: int) -> Float[Tensor, "B C H W"]:
    """Deal the channels out like cards: channel ``i`` of group ``g`` moves to place ``i · groups + g``.

    Source: Zhang et al., "ShuffleNet", CVPR 2018, section 3.1.
    """
    return torch.unflatten(features, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def initialise_convolutions(network: nn.Module) -> None:
    """Draw every k×k convolution of ``network`` from ``N(0, 2 / (k² · out_channels))``; set its bias to zero.

    Batch norm is left as PyTorch builds it (weight 1, bias 0).
    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, eq. 14 (the variance kept in the backward
    pass).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_linear(layer: nn.Linear, std: float = 0.01) -> None:
    """Draw the weight of ``layer`` from ``N(0, std²)`` and set its bias to zero."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
