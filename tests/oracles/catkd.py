"""CAT-KD by its equations, slowly: class by class, cell by cell."""

import torch
from torch import Tensor


def activation_map(feature: Tensor, weights: Tensor) -> Tensor:
    """``A_k = Σ_c w_kc · F_c`` of one sample and one class: ``(C, H, W)`` and ``(C,)`` → ``(H, W)``."""
    total = torch.zeros_like(feature[0])
    for channel, weight in zip(feature, weights, strict=True):
        total = total + weight * channel
    return total


def averaged(plane: Tensor, side: int) -> list[Tensor]:
    """φ: the means over ``side`` × ``side`` cells of equal size."""
    height, width = plane.shape[0] // side, plane.shape[1] // side
    return [
        plane[i * height : (i + 1) * height, j * width : (j + 1) * width].mean()
        for i in range(side)
        for j in range(side)
    ]


def class_attention(
    student: Tensor, student_weight: Tensor, teacher: Tensor, teacher_weight: Tensor, side: int, normalize: bool
) -> Tensor:
    total, number = torch.zeros((), dtype=student.dtype), 0
    for ours, theirs in zip(student, teacher, strict=True):
        for a, b in zip(student_weight, teacher_weight, strict=True):
            cells = []
            for feature, weights in ((ours, a), (theirs, b)):
                values = averaged(activation_map(feature, weights), side)
                norm = sum(value**2 for value in values) ** 0.5 if normalize else 1.0
                cells.append([value / norm for value in values])
            for p, q in zip(*cells, strict=True):
                total, number = total + (p - q) ** 2, number + 1
    return total / number
