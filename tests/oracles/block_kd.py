"""Block-KD by the equations, slowly: each stone by itself, each sum written out."""

import math

import torch
from torch import Tensor, nn


def one_by_one(teacher: list[nn.Module], classifier: nn.Module, start: int, feature: Tensor) -> Tensor:
    """``T_c ∘ T_n ∘ … ∘ T_{start+1}`` of one feature, the batch example by example."""
    rows = []
    for row in feature.split(1):
        for block in teacher[start:]:
            row = block(row)
        rows.append(classifier(row))
    return torch.cat(rows)


def softmax(row: list[Tensor], temperature: float) -> list[Tensor]:
    powers = [(value / temperature).exp() for value in row]
    return [power / sum(powers) for power in powers]


def distance(learner: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``τ² · KL(softmax(q/τ) ‖ softmax(p/τ))``, mean over the batch."""
    total = torch.zeros((), dtype=learner.dtype)
    for p_row, q_row in zip(learner, target, strict=True):
        p, q = softmax(list(p_row), temperature), softmax(list(q_row), temperature)
        total = total + sum(b * (b.log() - a.log()) for a, b in zip(p, q, strict=True))
    return total * temperature**2 / len(learner)


def task(learner: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, mean over the batch."""
    total = torch.zeros((), dtype=learner.dtype)
    for row, label in zip(learner, labels, strict=True):
        total = total - softmax(list(row), 1.0)[int(label)].log()
    return total / len(labels)


def loss(
    student: Tensor,
    teacher: Tensor,
    stones: dict[int, Tensor],
    labels: Tensor,
    n: int,
    weights: tuple[float, float, float],
    temperature: float,
    detached: bool,
) -> Tensor:
    """``L = α · L_task + β · L_distill + γ · L_cross``."""
    alpha, beta, gamma = weights
    w = {i: 1 / math.pow(2, n - i) for i in stones}
    l_task = task(student, labels)
    l_distill = distance(student, teacher, temperature)
    for i, logits in stones.items():
        l_task = l_task + w[i] * task(logits, labels)
        l_distill = l_distill + w[i] * distance(logits, teacher, temperature)
    ensemble = sum(stones.values(), start=torch.zeros_like(student)) / len(stones)
    if detached:
        ensemble = ensemble.detach()
    l_cross = distance(student, ensemble, temperature)
    for i, logits in stones.items():
        l_cross = l_cross + w[i] * distance(logits, ensemble, temperature)
    return alpha * l_task + beta * l_distill + gamma * l_cross
