"""What is done to raw pixels before a network sees them: part of a network as soon as somebody else uses it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

BILINEAR = "bilinear"


@dataclass(frozen=True)
class Preprocessing:
    """Raw pixels → what the network takes: ``(scaled pixels · rescale_factor - mean) / std``.

    Attributes:
        size: height and width of what the network takes.
        mean: per channel, of pixels scaled to 0 … 1.
        std: per channel, of pixels scaled to 0 … 1.
        rescale_factor: what raw pixels are multiplied by to lie in 0 … 1; 1/255 for bytes.
        resize_side: the shorter side in pixels that an image is scaled to (bilinear, antialiased) before the middle of
            ``size`` is cut out of it; None where images have that size already, and nothing is scaled.
        labels: what the classes are called, by number; empty where nobody said.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float = 1 / 255
    resize_side: int | None = None
    labels: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return len(self.mean)

    def __call__(self, pixels: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Raw pixels ``(B, C, H, W)`` → the network's input ``(B, C, *size)``.

        Raises:
            ValueError: other channels than the network's, or another size where nothing is to be scaled.
        """
        if pixels.ndim != 4 or pixels.shape[1] != self.channels:
            raise ValueError(f"the pixels are {tuple(pixels.shape)}, expected (batch, {self.channels}, height, width)")
        pixels = self._fitted(pixels)
        if tuple(pixels.shape[2:]) != self.size:
            raise ValueError(f"images are {tuple(pixels.shape[2:])} pixels, and the network takes {self.size}")
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() * self.rescale_factor - mean) / std

    def as_dict(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return {
            **asdict(self),
            "channels": {1: "grey", 3: "RGB"}.get(self.channels, self.channels),
            "interpolation": None if self.resize_side is None else BILINEAR,
            "antialias": self.resize_side is not None,
            "crop": None if self.resize_side is None else "centre",
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Preprocessing":
        """What ``as_dict`` gave, perhaps by way of JSON."""
        return cls(
            size=(int(content["size"][0]), int(content["size"][1])),
            mean=tuple(map(float, content["mean"])),
            std=tuple(map(float, content["std"])),
            rescale_factor=float(content["rescale_factor"]),
            resize_side=None if content["resize_side"] is None else int(content["resize_side"]),
            labels=tuple(map(str, content["labels"])),
        )

    def _fitted(self, pixels: Tensor) -> Tensor:
        if self.resize_side is None:
            return pixels
        from blockkd.data.decoding import import_transforms

        functional = import_transforms().functional
        scaled = functional.resize(pixels, [self.resize_side], antialias=True)
        fitted: Tensor = functional.center_crop(scaled, list(self.size))
        return fitted
