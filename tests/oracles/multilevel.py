"""Multi-level logit distillation by its equations, number by number."""

import torch
from torch import Tensor

from tests.oracles.block_kd import distance, softmax
from tests.oracles.objectives import standardize


def predictions(logits: Tensor, temperature: float) -> list[list[Tensor]]:
    return [softmax(list(row), temperature) for row in logits]


def batch_level(learner: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``1/B · Σ_ab (⟨p_a, p_b⟩^T - ⟨p_a, p_b⟩^S)²`` over pairs of samples."""
    ours, theirs = predictions(learner, temperature), predictions(target, temperature)
    total = torch.zeros((), dtype=learner.dtype)
    samples = range(len(ours))
    for a in samples:
        for b in samples:
            alike = [sum(x * y for x, y in zip(rows[a], rows[b], strict=True)) for rows in (ours, theirs)]
            total = total + (alike[1] - alike[0]) ** 2
    return total / len(ours)


def class_level(learner: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``1/K · Σ_jk (Σ_b p_bj p_bk^T - Σ_b p_bj p_bk^S)²`` over pairs of classes."""
    ours, theirs = predictions(learner, temperature), predictions(target, temperature)
    total = torch.zeros((), dtype=learner.dtype)
    classes = range(learner.shape[1])
    for j in classes:
        for k in classes:
            confused = [sum(row[j] * row[k] for row in rows) for rows in (ours, theirs)]
            total = total + (confused[1] - confused[0]) ** 2
    return total / learner.shape[1]


def loss(
    learner: Tensor,
    target: Tensor,
    weights: tuple[float, float, float],
    temperatures: tuple[float, ...],
    standardized: bool,
) -> Tensor:
    """All three levels, summed over the temperatures."""
    pair = (standardize(learner), standardize(target)) if standardized else (learner, target)
    total = torch.zeros((), dtype=learner.dtype)
    for temperature in temperatures:
        total = total + weights[0] * distance(*pair, temperature)
        total = total + weights[1] * batch_level(learner, target, temperature)
        total = total + weights[2] * class_level(learner, target, temperature)
    return total
