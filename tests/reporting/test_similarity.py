"""CKA against its definition written out over features, and its laws."""

import math

import pytest
import torch
from torch import Tensor

from blockkd.reporting.similarity import Features, centred_gram, cka, similarity_section


def by_features(x: Tensor, y: Tensor) -> float:
    """``‖YᵀX‖² / (‖XᵀX‖ · ‖YᵀY‖)`` of centred features, sum by sum."""

    def centred(values: Tensor) -> list[list[float]]:
        rows = values.flatten(1).double().tolist()
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        return [[value - mean for value, mean in zip(row, means, strict=True)] for row in rows]

    def squared_norm(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(
            sum(p * q for p, q in zip(left, right, strict=True)) ** 2
            for left in zip(*a, strict=True)
            for right in zip(*b, strict=True)
        )

    a, b = centred(x), centred(y)
    return squared_norm(b, a) / math.sqrt(squared_norm(a, a) * squared_norm(b, b))


def similarity(x: Tensor, y: Tensor) -> float:
    return cka(centred_gram(x), centred_gram(y))


@pytest.mark.parametrize("shapes", [((7, 3), (7, 5)), ((6, 2, 2, 2), (6, 9)), ((5, 4, 3), (5, 2, 3, 1))])
def test_it_is_the_definition(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(shape) + 3 for shape in shapes)
    assert similarity(x, y) == pytest.approx(by_features(x, y), rel=1e-9)


def test_rotation_scale_and_shift_change_nothing_and_a_network_is_like_itself() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 5).double(), torch.randn(8, 3).double()
    rotation, _ = torch.linalg.qr(torch.randn(5, 5).double())
    assert similarity(2.5 * x @ rotation - 7, y) == pytest.approx(similarity(x, y))
    assert similarity(x, x) == pytest.approx(1)
    assert 0 < similarity(x, y) < 1


def test_features_that_do_not_vary_are_like_nothing() -> None:
    assert similarity(torch.ones(6, 4), torch.randn(6, 4)) == 0


def test_a_teacher_alone_has_nobody_to_be_compared_with() -> None:
    alone = Features([centred_gram(torch.randn(4, 2))], torch.randn(4, 2))
    section = similarity_section({"teacher": alone}, "teacher", torch.tensor([0, 1, 0, 1]), ["a", "b"], ["kd: no cut"])
    assert section.is_empty
    assert section.missing[0] == "kd: no cut"
    assert "a teacher and a student are trained" in section.missing[1]
