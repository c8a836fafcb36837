"""Bridges between the maps of two networks, in both directions (FCFD)."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.features import Feature

LEAK = 0.1


class Bridges(nn.Module):
    """The two bridges after one block: student → teacher, and back.

    Source: Liu et al., "Function-Consistent Feature Distillation", ICLR 2023, arXiv 2304.11832, and the authors'
    public code.

    Args:
        student: the student's feature after the block, a map.
        teacher: the teacher's, a map.
        to_teacher: whether the teacher goes on from an activated feature.
        to_student: whether the student does; None for no bridge back.

    Raises:
        ValueError: a feature is no map.
    """

    def __init__(self, student: Feature, teacher: Feature, to_teacher: bool, to_student: bool | None) -> None:
        super().__init__()
        for network, feature in (("student", student), ("teacher", teacher)):
            if feature.layout not in ("CHW", "HWC"):
                raise ValueError(
                    f"FCFD's bridges are convolutions between maps, but the {network} has a feature {feature}; cut "
                    "where it has maps, or take a method that maps tokens and vectors as well, such as BlockKD"
                )
        self.there = Bridge(student, teacher, to_teacher)
        self.home = None if to_student is None else Bridge(teacher, student, to_student)

    def fit(self, student: Feature, teacher: Feature) -> None:
        """Connect features of another resolution from now on."""
        self.there.target = teacher
        if self.home is not None:
            self.home.target = student

    def forward(self, feature: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The student's feature → the teacher's space, ``(B, *student.shape) → (B, *teacher.shape)``."""
        mapped: Tensor = self.there(feature)
        return mapped

    def back(self, feature: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The teacher's feature → the student's space, ``(B, *teacher.shape) → (B, *student.shape)``.

        Raises:
            ValueError: there is no bridge back.
        """
        if self.home is None:
            raise ValueError("there is no bridge back after the last block: no mixed path changes networks there")
        mapped: Tensor = self.home(feature)
        return mapped


class Bridge(nn.Module):
    """3×3 convolution, batch norm, and LeakyReLU(0.1) where the target network goes on from an activated feature.

    From a grid twice as large the convolution has stride 2, from one half as large it is a transposed convolution
    (4×4, stride 2). Grids in other proportions, which the authors leave out, are resized first if larger and last if
    smaller: average-pooled or interpolated.

    Args:
        source: a map.
        target: a map.
        activated: whether the target is activated.
    """

    def __init__(self, source: Feature, target: Feature, activated: bool) -> None:
        super().__init__()
        self.source_layout, self.target = source.layout, target
        inputs, outputs = source.channels, target.channels
        self.halves = _twice_as_large(source, target)
        self.convolution: nn.Conv2d | nn.ConvTranspose2d
        if _twice_as_large(target, source):
            self.convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        else:
            self.convolution = nn.Conv2d(inputs, outputs, 3, stride=2 if self.halves else 1, padding=1, bias=False)
            nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = nn.LeakyReLU(LEAK) if activated else nn.Identity()

    def forward(self, feature: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """``(B, *source.shape) → (B, *target.shape)``."""
        maps = feature.permute(0, 3, 1, 2) if self.source_layout == "HWC" else feature
        height, width = self.target.grid
        if not self.halves and (height < maps.shape[2] or width < maps.shape[3]):
            maps = F.adaptive_avg_pool2d(maps, (min(height, maps.shape[2]), min(width, maps.shape[3])))
        maps = self.norm(self.convolution(maps))
        if tuple(maps.shape[2:]) != (height, width):
            maps = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
        maps = self.activation(maps)
        return maps.permute(0, 2, 3, 1) if self.target.layout == "HWC" else maps


def _twice_as_large(one: Feature, two: Feature) -> bool:
    return all(a == 2 * b for a, b in zip(one.grid, two.grid, strict=True))
