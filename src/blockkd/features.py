"""What a feature looks like: its shape, and which dimensions are channels and which are places."""

from dataclasses import dataclass
from math import log, prod
from typing import Literal

from torch import Size

Layout = Literal["CHW", "HWC", "LD", "D"]


@dataclass(frozen=True)
class Feature:
    """A feature of one example, without the batch dimension.

    Attributes:
        shape: ``(C, H, W)``, ``(H, W, C)``, ``(L, D)`` or ``(D,)``.
        layout: which of these.
    """

    shape: tuple[int, ...]
    layout: Layout

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.layout):
            raise ValueError(f"a feature laid out as {self.layout} has {len(self.layout)} dimensions, got {self.shape}")

    @property
    def channels(self) -> int:
        """C, or D."""
        return self.shape[0] if self.layout == "CHW" else self.shape[-1]

    @property
    def grid(self) -> tuple[int, ...]:
        """``(H, W)`` of maps, ``(L,)`` of tokens, ``()`` of vectors."""
        return self.shape[1:] if self.layout == "CHW" else self.shape[:-1]

    @property
    def area(self) -> int:
        """How many places the grid has; 1 for vectors."""
        return prod(self.grid)

    def __str__(self) -> str:
        return "×".join(map(str, self.shape)) + ("" if self.layout == "CHW" else f" {self.layout}")


def feature_of(shape: Size | None, image: Size) -> Feature | None:
    """The feature behind a tensor of this ``shape``, when the network's input had the shape ``image``.

    Both with batch dimension. Whether a map's channels come first or last is told from its proportions: its grid
    has those of the image. Returns None for shapes that are no feature.
    """
    if shape is None or not 2 <= len(shape) <= 4:
        return None
    sizes = tuple(shape[1:])
    if len(sizes) == 1:
        return Feature(sizes, "D")
    if len(sizes) == 2:
        return Feature(sizes, "LD")
    proportion = log(image[-2] / image[-1]) if len(image) == 4 else 0.0
    first = abs(log(sizes[1] / sizes[2]) - proportion)
    last = abs(log(sizes[0] / sizes[1]) - proportion)
    return Feature(sizes, "CHW" if first <= last else "HWC")
