"""SP, NST, PKT and RKD by their equations, slowly: pair by pair."""

import torch
from torch import Tensor


def _sum(values: list[Tensor], like: Tensor) -> Tensor:
    return sum(values, torch.zeros((), dtype=like.dtype))


def _norm(vector: Tensor) -> Tensor:
    return _sum([x**2 for x in vector], vector) ** 0.5


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return _sum([x * y for x, y in zip(a, b, strict=True)], a) / (_norm(a) * _norm(b))


def _huber(a: Tensor, b: Tensor) -> Tensor:
    gap = (a - b).abs()
    return gap**2 / 2 if gap <= 1 else gap - 0.5


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """arXiv 1907.09682: ``1/b² ‖G_T - G_S‖_F²``."""

    def rows(feature: Tensor) -> list[Tensor]:
        flat = [example.reshape(-1) for example in feature]
        products = [torch.stack([(a * b).sum() for b in flat]) for a in flat]
        return [row / _norm(row) for row in products]

    squares = [
        (x - y) ** 2
        for left, right in zip(rows(teacher), rows(student), strict=True)
        for x, y in zip(left, right, strict=True)
    ]
    return _sum(squares, student) / len(student) ** 2


def selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """arXiv 1707.01219: squared MMD of the channels' unit patterns, ``k(a, b) = (aᵀb)²``."""

    def kernel(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return _sum([(x * y).sum() ** 2 for x in a for y in b], student) / (len(a) * len(b))

    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher, strict=True):
        ours, theirs = ([channel.reshape(-1) / _norm(channel.reshape(-1)) for channel in maps] for maps in (s, t))
        total = total + kernel(theirs, theirs) + kernel(ours, ours) - 2 * kernel(ours, theirs)
    return total / len(student)


def neighbourhoods(student: Tensor, teacher: Tensor) -> Tensor:
    """arXiv 1803.10837: the divergence of neighbour probabilities under the cosine kernel, over B²."""
    size = len(student)

    def probabilities(x: Tensor, i: int) -> dict[int, Tensor]:
        kernel = {j: (_cosine(x[i], x[j]) + 1) / 2 for j in range(size) if j != i}
        total = _sum(list(kernel.values()), x)
        return {j: value / total for j, value in kernel.items()}

    terms = []
    for i in range(size):
        p, q = probabilities(teacher, i), probabilities(student, i)
        terms += [p[j] * (p[j] / q[j]).log() for j in p]
    return _sum(terms, student) / size**2


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D, arXiv 1904.05068."""
    size = len(student)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]

    def potentials(x: Tensor) -> list[Tensor]:
        lengths = [_norm(x[i] - x[j]) for i, j in pairs]
        mean = _sum(lengths, x) / len(pairs)
        return [length / mean for length in lengths]

    losses = [_huber(s, t) for s, t in zip(potentials(student), potentials(teacher), strict=True)]
    return _sum(losses, student) / size**2


def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A, arXiv 1904.05068; triples with the corner twice have no angle."""
    size = len(student)

    def potential(x: Tensor, i: int, j: int, k: int) -> Tensor:
        return _cosine(x[i] - x[j], x[k] - x[j])

    losses = [
        _huber(potential(student, i, j, k), potential(teacher, i, j, k))
        for i in range(size)
        for j in range(size)
        for k in range(size)
        if j not in (i, k)
    ]
    return _sum(losses, student) / size**3
