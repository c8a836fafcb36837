"""CRD by its equations, slowly: pair by pair."""

import torch
from torch import Tensor


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


def critic(anchor: Tensor, other: Tensor, temperature: float) -> Tensor:
    return ((anchor * other).sum() / temperature).exp()


def direction(
    anchors: Tensor,
    keys: Tensor,
    memory: Tensor,
    drawn: Tensor,
    allowed: Tensor,
    temperature: float,
    mean: float | None = None,
) -> Tensor:
    """Noise-contrastive loss of one direction; c is the mean critic of this batch unless given."""
    k = drawn.shape[1]
    positives = [critic(a, b, temperature) for a, b in zip(anchors, keys, strict=True)]
    negatives = [[critic(a, memory[int(j)], temperature) for j in row] for a, row in zip(anchors, drawn, strict=True)]
    if mean is None:
        values = [float(v.detach()) for v in positives] + [float(v.detach()) for row in negatives for v in row]
        mean = sum(values) / len(values)
    noise = k * mean
    total = torch.zeros((), dtype=anchors.dtype)
    for positive, row, counts in zip(positives, negatives, allowed, strict=True):
        total = total - (positive / (positive + noise)).log()
        misses = [(noise / (value + noise)).log() for value, counted in zip(row, counts, strict=True) if counted]
        if misses:
            total = total - k * sum(misses) / len(misses)
    return total / len(anchors)


def moved(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    return unit(momentum * old + (1 - momentum) * new)
