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
    """arXiv 1909.10351, equation 8: mean squared error of the real tokens of each example, ``(B, L, D)``."""
    examples = []
    for b in range(student.shape[0]):
        squares = [
            (student[b, t, d] - teacher[b, t, d]) ** 2
            for t in range(student.shape[1])
            if mask[b, t]
            for d in range(student.shape[2])
        ]
        examples.append(sum(squares) / len(squares))
    return sum(examples) / len(examples)


def scores(queries: Tensor, keys: Tensor, b: int, h: int, mask: Tensor) -> list[list[Tensor]]:
    """Row by row ``q · k / √d`` of the real tokens of one example and head; ``(B, H, L, d)``."""
    real = [t for t in range(mask.shape[1]) if mask[b, t]]
    d = queries.shape[3]
    return [[sum(queries[b, h, t] * keys[b, h, u]) / d**0.5 for u in real] for t in real]  # type: ignore[misc]


def attention(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """arXiv 1909.10351, equation 7: ``1/h Σ_i MSE(A_i^S, A_i^T)`` of each example; queries and keys of both."""
    examples = []
    heads = student[0].shape[1]
    for b in range(len(mask)):
        errors = []
        for h in range(heads):
            ours, theirs = (torch.stack([torch.stack(r) for r in scores(*qk, b, h, mask)]) for qk in (student, teacher))
            errors.append(((ours - theirs) ** 2).mean())
        examples.append(sum(errors) / heads)
    return sum(examples) / len(examples)


def regrouped(vectors: Tensor, heads: int) -> Tensor:
    """arXiv 2012.15828: the vectors of all heads one after the other, cut anew; ``(B, H, L, d) → (B, R, L, e)``."""
    whole = torch.cat([vectors[:, h] for h in range(vectors.shape[1])], dim=2)
    return torch.stack(whole.chunk(heads, dim=2), dim=1)


def relation(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, mask: Tensor, causal: bool = False
) -> Tensor:
    """arXiv 2012.15828, L_ij: ``1/(R |x|) Σ_a Σ_t KL(R^T_{a,t} ‖ R^S_{a,t})`` of each example."""
    examples = []
    ours, theirs = ([regrouped(x, heads) for x in pair] for pair in (student, teacher))
    for b in range(len(mask)):
        divergences = []
        for a in range(heads):
            rows = zip(scores(*ours, b, a, mask), scores(*theirs, b, a, mask), strict=True)
            for t, (q, p) in enumerate(rows):
                seen = t + 1 if causal else len(q)
                ps, qs = (torch.stack(row[:seen]).exp() for row in (p, q))
                ps, qs = ps / ps.sum(), qs / qs.sum()
                divergences.append(sum(ps * (ps / qs).log()))
        examples.append(sum(divergences) / len(divergences))
    return sum(examples) / len(examples)  # type: ignore[return-value]


def mixed(embedded: Tensor, students: list, teachers: list, replaced: list[bool]) -> Tensor:  # type: ignore[type-arg]
    """arXiv 2002.02925, equation 4: ``y_{i+1} = r_i · S_i(y_i) + (1 - r_i) · T_i(y_i)``, both always run."""
    y = embedded
    for own, student, teacher in zip(replaced, students, teachers, strict=True):
        r = 1.0 if own else 0.0
        y = r * student(y) + (1 - r) * teacher(y)
    return y
