"""ReviewKD by its equations, slowly: place by place, tap by tap."""

import math

import torch
from torch import Tensor, nn


def nearest(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    rows = [math.floor(i * maps.shape[2] / grid[0]) for i in range(grid[0])]
    columns = [math.floor(j * maps.shape[3] / grid[1]) for j in range(grid[1])]
    return torch.stack([torch.stack([maps[:, :, i, j] for j in columns], dim=-1) for i in rows], dim=-2)


def normed(maps: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch norm as in training: by the batch's own mean and variance."""
    planes = []
    for channel, scale, shift in zip(maps.transpose(0, 1), norm.weight, norm.bias, strict=True):
        centred = channel - channel.mean()
        planes.append(centred / (centred.square().mean() + norm.eps).sqrt() * scale + shift)
    return torch.stack(planes, dim=1)


def convolved(maps: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of odd size that keeps the grid, as a sum over its taps."""
    side = kernel.shape[2]
    padded = nn.functional.pad(maps, [side // 2] * 4)
    height, width = maps.shape[2:]
    total = torch.zeros(len(maps), len(kernel), height, width, dtype=maps.dtype)
    for i in range(side):
        for j in range(side):
            window = padded[:, :, i : i + height, j : j + width]
            total = total + torch.einsum("bchw,dc->bdhw", window, kernel[:, :, i, j])
    return total if bias is None else total + bias[None, :, None, None]


def fused(module: nn.Module, feature: Tensor, deeper: Tensor | None, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """ABF, with the weights of ``module``."""
    enter, enter_norm = module.enter  # type: ignore[misc]
    leave, leave_norm = module.leave  # type: ignore[misc]
    value = normed(convolved(feature, enter.weight), enter_norm)
    if deeper is not None:
        attention: nn.Conv2d = module.attention  # type: ignore[assignment]
        deeper = nearest(deeper, (value.shape[2], value.shape[3]))
        scores = convolved(torch.cat([value, deeper], dim=1), attention.weight, attention.bias)
        first, second = (1 / (1 + (-scores[:, k : k + 1]).exp()) for k in (0, 1))
        value = first * value + second * deeper
    value = nearest(value, grid)
    return normed(convolved(value, leave.weight), leave_norm), value


def context(learner: Tensor, target: Tensor) -> Tensor:
    """HCL, for grids that 4, 2 and 1 divide."""
    side = learner.shape[2]
    total, weights = (learner - target).square().mean(), 1.0
    weight = 1.0
    for cells in (4, 2, 1):
        if cells >= side:
            continue
        weight = weight / 2
        step = side // cells
        differences = [
            (learner - target)[:, :, i : i + step, j : j + step].mean(dim=(2, 3)).square().mean()
            for i in range(0, side, step)
            for j in range(0, side, step)
        ]
        total = total + weight * sum(differences) / len(differences)
        weights += weight
    return total / weights


def loss(modules: list[nn.Module], students: list[Tensor], teachers: list[Tensor]) -> Tensor:
    """``Σ HCL(ABF(...), F^T)``, from the deepest back."""
    total = torch.zeros((), dtype=students[0].dtype)
    deeper = None
    for module, feature, target in list(zip(modules, students, teachers, strict=True))[::-1]:
        output, deeper = fused(module, feature, deeper, (target.shape[2], target.shape[3]))
        total = total + context(output, target)
    return total
