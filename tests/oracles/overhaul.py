"""OFD by its equations, slowly: element by element."""

import torch
from torch import Tensor


def margins(feature: Tensor) -> Tensor:
    """The mean of the negative values of each channel of ``(B, C, H, W)``; 0 where there are none."""
    means = []
    for channel in feature.transpose(0, 1):
        negative = [float(value) for value in channel.flatten() if value < 0]
        means.append(sum(negative) / len(negative) if negative else 0.0)
    return torch.tensor(means, dtype=feature.dtype)


def partial_l2(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for ours, theirs in zip(student, teacher, strict=True):
        for learner, target, floor in zip(ours, theirs, margin, strict=True):
            for s, t in zip(learner.flatten(), target.flatten(), strict=True):
                t = max(t, floor)
                if not (s <= t and t <= 0):
                    total = total + (t - s) ** 2
    return total / len(student)


def loss(students: list[Tensor], teachers: list[Tensor]) -> Tensor:
    """``Σ_i 2^(i-n) · d_p``, each stage's margins from the same features."""
    n = len(students)
    terms = [
        partial_l2(s, t, margins(t)) / 2 ** (n - i) for i, (s, t) in enumerate(zip(students, teachers, strict=True), 1)
    ]
    return torch.stack(terms).sum()
