"""Connectors ``C_i``: the student's feature → the space of the teacher's (method, notation).

Chosen from the two features. Channels are mapped by a 1×1 convolution with batch norm for maps, by a linear layer with
layer norm for tokens and vectors; a grid larger than the teacher's is pooled before, a smaller one is upsampled after,
so that the mapping always runs on the smaller grid. Between maps and tokens the tokens are laid out on their grid.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.features import Feature


def connector(student: Feature, teacher: Feature) -> nn.Module:
    """The connector for one pair of features.

    Args:
        student: the student's feature after block i.
        teacher: the teacher's feature after block i.

    Returns:
        A module ``(B, *student.shape) → (B, *teacher.shape)``.

    Raises:
        ValueError: a vector meets a map or tokens: a place cannot be made up from none.
    """
    if bool(student.grid) != bool(teacher.grid):
        raise ValueError(
            f"no connector leads from a student feature {student} to a teacher feature {teacher}: one has places and "
            "the other has none; cut both networks before pooling, or give a connector of your own"
        )
    if teacher.layout in ("CHW", "HWC", "CL"):
        return MapConnector(student, teacher)
    return TokenConnector(student, teacher)


class MapConnector(nn.Module):
    """To maps: resize if larger, 1×1 convolution, batch norm, resize if smaller.

    Args:
        student: a feature with a grid; prefix tokens (a class token) of a token sequence are left out.
        teacher: a map.
    """

    def __init__(self, student: Feature, teacher: Feature) -> None:
        super().__init__()
        self.source, self.target = student, teacher
        self.project = nn.Conv2d(student.channels, teacher.channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(teacher.channels)

    def fit(self, student: Feature, teacher: Feature) -> None:
        """Connect features of another resolution from now on."""
        self.source, self.target = student, teacher

    def forward(self, feature: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """``(B, *student.shape) → (B, *teacher.shape)``."""
        grid = self.target.places
        maps = to_maps(feature, self.source)
        maps = self.norm(self.project(shrink(maps, grid)))
        maps = grow(maps, grid)
        if self.target.layout == "CL":
            return maps.squeeze(2)
        return maps if self.target.layout == "CHW" else maps.permute(0, 2, 3, 1)


class TokenConnector(nn.Module):
    """To tokens and vectors: resize the grid of tokens if larger, linear, layer norm, resize if smaller.

    Where the teacher has prefix tokens (a class token, registers) and the student as many, they are mapped
    like the others; where the student has another number, each starts from the mean over the student's places,
    told apart by a learned offset.

    Args:
        student: tokens or a map when the teacher has tokens, a vector when it has a vector.
        teacher: tokens or a vector.
    """

    def __init__(self, student: Feature, teacher: Feature) -> None:
        super().__init__()
        self.source, self.target = student, teacher
        self.project = nn.Linear(student.channels, teacher.channels)
        self.norm = nn.LayerNorm(teacher.channels)
        prefix = 0 if self._straight() else teacher.prefix
        self.offset = nn.Parameter(torch.zeros(prefix, teacher.channels)) if prefix else None

    def fit(self, student: Feature, teacher: Feature) -> None:
        """Connect features of another resolution from now on."""
        self.source, self.target = student, teacher

    def forward(self, feature: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """``(B, *student.shape) → (B, *teacher.shape)``."""
        if self._straight():
            return self.norm(self.project(feature))
        grid = self.target.places
        maps = shrink(to_maps(feature, self.source), grid)
        tokens = self.norm(self.project(maps.flatten(2).transpose(1, 2)))
        places = grow(tokens.transpose(1, 2).unflatten(2, maps.shape[2:]), grid)
        tokens = places.flatten(2).transpose(1, 2)
        if self.offset is None:
            return tokens
        prefix = tokens.mean(dim=1, keepdim=True) + self.offset
        return torch.cat([prefix, tokens], dim=1)

    def _straight(self) -> bool:
        """Token by token, prefix included."""
        return self.source.layout == self.target.layout and self.source.grid == self.target.grid


def to_maps(feature: Float[Tensor, "B ..."], source: Feature) -> Float[Tensor, "B C H W"]:
    """Any feature with places as maps, channels first; tokens lie on their lattice, without those before it.

    Args:
        feature: ``(B, *source.shape)``.
        source: what it looks like.
    """
    if source.layout == "CHW":
        return feature
    if source.layout == "HWC":
        return feature.permute(0, 3, 1, 2)
    if source.layout == "CL":
        return feature.unsqueeze(2)
    places = feature[:, source.prefix :]
    return places.transpose(1, 2).unflatten(2, source.places)


def shrink(maps: Float[Tensor, "B C h w"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Maps averaged down to ``grid`` along the sides where theirs is larger; as they are where it is not."""
    height, width = maps.shape[2:]
    smaller = (min(height, grid[0]), min(width, grid[1]))
    return maps if smaller == (height, width) else F.adaptive_avg_pool2d(maps, smaller)


def grow(maps: Float[Tensor, "B C h w"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Maps interpolated to ``grid``."""
    if tuple(maps.shape[2:]) == grid:
        return maps
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
