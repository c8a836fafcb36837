"""FitNet, AT and VID by their equations, slowly: one number after the other."""

import math

import torch
from torch import Tensor


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of all squared differences (arXiv 1412.6550, without its half)."""
    pairs = list(zip(student.flatten(), teacher.flatten(), strict=True))
    return sum(((s - t) ** 2 for s, t in pairs), torch.zeros((), dtype=student.dtype)) / len(pairs)


def attention_map(maps: Tensor, p: float) -> list[Tensor]:
    """``Q / ‖Q‖₂`` of one example (C, H, W), place by place, with ``Q = Σ_c |A_c|^p``."""
    channels, height, width = maps.shape
    places = [
        sum((maps[c, h, w].abs() ** p for c in range(channels)), torch.zeros((), dtype=maps.dtype))
        for h in range(height)
        for w in range(width)
    ]
    norm = sum(q**2 for q in places) ** 0.5
    return [q / norm for q in places]


def attention(student: Tensor, teacher: Tensor, p: float) -> Tensor:
    """arXiv 1612.03928, as the mean over batch and places of the squared difference."""
    squares = [
        (a - b) ** 2
        for s, t in zip(student, teacher, strict=True)
        for a, b in zip(attention_map(s, p), attention_map(t, p), strict=True)
    ]
    return torch.stack(squares).mean()


def gaussian(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """``-log N(t; μ, σ²)`` without its constant, mean over all elements (arXiv 1904.05835)."""
    total, count = torch.zeros((), dtype=mean.dtype), 0
    for b, c, h, w in torch.cartesian_prod(*(torch.arange(size) for size in mean.shape)).tolist():
        density = torch.distributions.Normal(mean[b, c, h, w], variance[c] ** 0.5)
        total = total - density.log_prob(target[b, c, h, w]) - math.log(2 * math.pi) / 2
        count += 1
    return total / count


def gaussian_of(maps: Tensor, weights: list[Tensor], raw_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, place by place through three matrices with ReLU between, and variance ``log(1 + e^a) + 1e-5``."""
    batch, _, height, width = maps.shape
    mean = torch.zeros(batch, len(raw_variance), height, width, dtype=maps.dtype)
    for b, h, w in torch.cartesian_prod(*(torch.arange(size) for size in (batch, height, width))).tolist():
        first, second, third = (weight.flatten(1) for weight in weights)
        mean[b, :, h, w] = third @ (second @ (first @ maps[b, :, h, w]).clamp(min=0)).clamp(min=0)
    return mean, (1 + raw_variance.exp()).log() + 1e-5


def pooled(maps: Tensor, height: int, width: int) -> Tensor:
    """The mean over each cell of a coarser grid that divides the finer one."""
    down, right = maps.shape[2] // height, maps.shape[3] // width
    out = torch.zeros(*maps.shape[:2], height, width, dtype=maps.dtype)
    for h in range(height):
        for w in range(width):
            cell = maps[:, :, h * down : (h + 1) * down, w * right : (w + 1) * right]
            out[:, :, h, w] = cell.mean((2, 3))
    return out
