"""What a feature looks like: its shape, and which dimensions are channels and which are places."""

from dataclasses import dataclass
from math import isqrt, log, prod, sqrt
from typing import Literal

from torch import Size

Layout = Literal["CHW", "HWC", "CL", "LD", "D"]
# More tokens than this before those of an image's grid are no class tokens or registers.
MOST_PREFIX = 16


@dataclass(frozen=True)
class Feature:
    """A feature of one example, without the batch dimension.

    Attributes:
        shape: ``(C, H, W)``, ``(H, W, C)``, ``(C, L)``, ``(L, D)`` or ``(D,)``.
        layout: which of these.
        lattice: ``(H, W)`` on which a feature's places lie, where the shape does not tell: of tokens made of an image
            the grid of its patches, of sequences ``(1, L)``.
    """

    shape: tuple[int, ...]
    layout: Layout
    lattice: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.layout):
            raise ValueError(f"a feature laid out as {self.layout} has {len(self.layout)} dimensions, got {self.shape}")

    @property
    def channels(self) -> int:
        """C, or D."""
        return self.shape[0] if self.layout in ("CHW", "CL") else self.shape[-1]

    @property
    def grid(self) -> tuple[int, ...]:
        """``(H, W)`` of maps, ``(L,)`` of sequences and tokens, ``()`` of vectors."""
        return self.shape[1:] if self.layout in ("CHW", "CL") else self.shape[:-1]

    @property
    def area(self) -> int:
        """How many places the grid has; 1 for vectors."""
        return prod(self.grid)

    @property
    def places(self) -> tuple[int, int]:
        """``(H, W)`` of the lattice; a square where nothing is known of the tokens' image."""
        if self.lattice is not None:
            return self.lattice
        if self.layout == "LD":
            return isqrt(self.area), isqrt(self.area)
        height, width = (1, *self.grid)[-2:]
        return height, width

    @property
    def prefix(self) -> int:
        """How many tokens stand before those of the lattice (a class token, registers); 0 for all but tokens."""
        return self.area - prod(self.places) if self.layout == "LD" else 0

    def __str__(self) -> str:
        return "×".join(map(str, self.shape)) + ("" if self.layout == "CHW" else f" {self.layout}")


def feature_of(shape: Size | None, image: Size, channels: Literal["first", "last"] | None = None) -> Feature | None:
    """The feature behind a tensor of this ``shape``, when the network's input had the shape ``image``.

    Both with batch dimension. Returns None for shapes that are no feature.

    Args:
        shape: of the tensor.
        image: of the input.
        channels: where they are, if that is known from the layer that made the tensor; otherwise a map's grid is taken
            to be where it has the proportions of the image, and three dimensions are taken to be tokens.
    """
    if shape is None or not 2 <= len(shape) <= 4:
        return None
    sizes = tuple(shape[1:])
    if len(sizes) == 1:
        return Feature(sizes, "D")
    if len(sizes) == 2:
        return (
            Feature(sizes, "CL", (1, sizes[1]))
            if channels == "first"
            else Feature(sizes, "LD", _lattice(sizes[0], image))
        )
    if channels is None:
        proportion = log(image[-2] / image[-1]) if len(image) == 4 else 0.0
        first = abs(log(sizes[1] / sizes[2]) - proportion)
        last = abs(log(sizes[0] / sizes[1]) - proportion)
        channels = "first" if first <= last else "last"
    return Feature(sizes, "CHW" if channels == "first" else "HWC")


def _lattice(tokens: int, image: Size) -> tuple[int, int]:
    """The grid of an image's patches among so many tokens, in the image's proportions; one row where there is none."""
    if len(image) != 4:
        return 1, tokens
    proportion = image[-2] / image[-1]
    for height in range(round(sqrt(tokens * proportion)) + 1, 0, -1):
        width = round(height / proportion)
        if width and 0 <= tokens - height * width <= MOST_PREFIX:
            return height, width
    return 1, tokens
