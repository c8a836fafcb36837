"""Methods for text by their equations, slowly: token by token, example by example."""

import torch
from torch import Tensor


def patient(student: Tensor, teacher: Tensor) -> Tensor:
    """arXiv 1908.09355, equation 8, one layer: vectors ``(B, D)``, mean over the batch."""
    total = torch.zeros((), dtype=student.dtype)
    for a, b in zip(student, teacher, strict=True):
        a, b = a / sum(x * x for x in a).sqrt(), b / sum(x * x for x in b).sqrt()
        total = total + sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(student)


def hidden(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """arXiv 1909.10351, equation 8: mean squared error of the real tokens, ``(B, L, D)``."""
    squares = [
        (student[b, t, d] - teacher[b, t, d]) ** 2
        for b in range(student.shape[0])
        for t in range(student.shape[1])
        if mask[b, t]
        for d in range(student.shape[2])
    ]
    return torch.stack(squares).mean()


def mixed(embedded: Tensor, students: list, teachers: list, replaced: list[bool]) -> Tensor:  # type: ignore[type-arg]
    """arXiv 2002.02925, equation 4: ``y_{i+1} = r_i · S_i(y_i) + (1 - r_i) · T_i(y_i)``, both always run."""
    y = embedded
    for own, student, teacher in zip(replaced, students, teachers, strict=True):
        r = 1.0 if own else 0.0
        y = r * student(y) + (1 - r) * teacher(y)
    return y
