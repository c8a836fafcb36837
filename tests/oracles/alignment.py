"""The four ways to align features, number by number (Fig. 2 of the Block-KD paper)."""

from collections.abc import Callable

import torch
from torch import Tensor


def pooled(maps: Tensor, height: int, width: int) -> Tensor:
    """The mean over equal tiles of one example's map ``(C, H, W)``."""
    tall, wide = maps.shape[1] // height, maps.shape[2] // width
    rows = []
    for r in range(height):
        tiles = [maps[:, r * tall : (r + 1) * tall, c * wide : (c + 1) * wide] for c in range(width)]
        rows.append(torch.stack([tile.sum((1, 2)) / (tall * wide) for tile in tiles], dim=1))
    return torch.stack(rows, dim=1)


def attention(places: list[Tensor]) -> list[Tensor]:
    """``Q / ‖Q‖₂`` with ``Q_p = 1/C Σ_c F_cp²``, of the feature at each place."""
    energy = [sum(value**2 for value in place) / len(place) for place in places]
    norm = sum(q**2 for q in energy) ** 0.5
    return [q / norm for q in energy]


def places_of(example: Tensor, layout: str) -> list[Tensor]:
    if layout == "CHW":
        return list(example.flatten(1).T)
    return list(example.reshape(-1, example.shape[-1]))


def mean_square(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([(a - b) ** 2 for a, b in pairs]).sum() / len(pairs)


def apart(
    way: str, ours: Tensor, theirs: Tensor, layout: str, connect: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``A_i`` of the explicit ways."""
    if way == "two_projections" and layout == "CHW":
        grid = [min(a, b) for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True)]
        ours, theirs = (torch.stack([pooled(maps, *grid) for maps in batch]) for batch in (ours, theirs))
    if way != "two_projections":
        assert connect is not None
        ours = connect(ours)
    pairs: list[tuple[Tensor, Tensor]] = []
    for one, two in zip(ours, theirs, strict=True):
        if way == "one_mapping":
            pairs += zip(one.flatten(), two.flatten(), strict=True)
        else:
            pairs += zip(attention(places_of(one, layout)), attention(places_of(two, layout)), strict=True)
    return mean_square(pairs)
