"""The objectives once more, slowly: number by number in float64, straight from the papers' equations.

Nothing here is taken from ``blockkd.objectives``, and nothing is done for speed or for large logits.
Gradients follow by differentiating these few operations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Row = Sequence[Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``-Σ_k q_k log p_k`` with ``q = (1-ε) onehot(y) + ε/K``; Szegedy et al. 2016, section 7."""
    losses = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        probabilities = _softmax(row, 1.0)
        share = label_smoothing / len(probabilities)
        wanted = [share + (1 - label_smoothing) * (k == label) for k in range(len(probabilities))]
        losses.append(-sum(q * p.log() for q, p in zip(wanted, probabilities, strict=True)))
    return _mean(losses)


def kl_divergence(learner: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``τ² Σ_k p_k^T log(p_k^T / p_k^S)``; Hinton et al. 2015, section 2."""
    return temperature**2 * _mean(
        [_kl(_softmax(t, temperature), _softmax(s, temperature)) for s, t in zip(learner, target, strict=True)]
    )


def target_class_kd(learner: Tensor, target: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """``τ² KL((p_t^T, p_∖t^T) ‖ (p_t^S, p_∖t^S))``; Zhao et al. 2022, section 3.1."""
    losses = []
    for s, t, label in zip(learner, target, labels.tolist(), strict=True):
        pairs = []
        for row in (t, s):
            probabilities = _softmax(row, temperature)
            others = torch.stack([p for k, p in enumerate(probabilities) if k != label]).sum()
            pairs.append([probabilities[label], others])
        losses.append(_kl(*pairs))
    return temperature**2 * _mean(losses)


def non_target_class_kd(learner: Tensor, target: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """``τ² KL(p̂^T ‖ p̂^S)``, ``p̂_i = p_i / p_∖t``; Zhao et al. 2022, section 3.1."""
    losses = []
    for s, t, label in zip(learner, target, labels.tolist(), strict=True):
        rest = [[z for k, z in enumerate(row) if k != label] for row in (t, s)]
        losses.append(_kl(*(_softmax(row, temperature) for row in rest)))
    return temperature**2 * _mean(losses)


def decoupled_kd(
    learner: Tensor, target: Tensor, labels: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """``α TCKD + β NCKD``; Zhao et al. 2022, section 3.3."""
    tckd = target_class_kd(learner, target, labels, temperature)
    return alpha * tckd + beta * non_target_class_kd(learner, target, labels, temperature)


def dist(learner: Tensor, target: Tensor, beta: float, gamma: float, temperature: float) -> Tensor:
    """``τ² (β mean_b (1 - ρ(row_b)) + γ mean_k (1 - ρ(column_k)))``; Huang et al. 2022."""
    ours = [_softmax(row, temperature) for row in learner]
    theirs = [_softmax(row, temperature) for row in target]
    inter = _mean([1 - _correlation(s, t) for s, t in zip(ours, theirs, strict=True)])
    columns = zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
    intra = _mean([1 - _correlation(s, t) for s, t in columns])
    return temperature**2 * (beta * inter + gamma * intra)


def standardize(logits: Tensor) -> Tensor:
    """``(z_k - z̄) / σ``, ``σ² = 1/K Σ_k (z_k - z̄)²``; Sun et al. 2024."""
    rows = []
    for row in logits:
        mean = _mean(list(row))
        sigma = _mean([(z - mean) ** 2 for z in row]).sqrt()
        rows.append(torch.stack([(z - mean) / sigma for z in row]))
    return torch.stack(rows)


def squared_error(learner: Tensor, target: Tensor) -> Tensor:
    """``mean_b mean_k (s_bk - t_bk)²``."""
    return _mean(
        [_mean([(a - b) ** 2 for a, b in zip(s, t, strict=True)]) for s, t in zip(learner, target, strict=True)]
    )


def _softmax(row: Row | Tensor, temperature: float) -> list[Tensor]:
    weights = [(z / temperature).exp() for z in row]
    total = torch.stack(weights).sum()
    return [weight / total for weight in weights]


def _kl(p: Row, q: Row) -> Tensor:
    return torch.stack([a * (a / b).log() for a, b in zip(p, q, strict=True)]).sum()


def _correlation(a: Row, b: Row) -> Tensor:
    """Covariance over both deviations; 0 where there is only one number, which does not vary."""
    if len(a) == 1:
        return torch.zeros_like(a[0])
    mean_a, mean_b = _mean(a), _mean(b)
    covariance = _mean([(x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)])
    variance_a, variance_b = (_mean([(x - m) ** 2 for x in v]) for v, m in ((a, mean_a), (b, mean_b)))
    return covariance / (variance_a.sqrt() * variance_b.sqrt())


def _mean(values: Row) -> Tensor:
    return torch.stack(list(values)).sum() / len(values)
