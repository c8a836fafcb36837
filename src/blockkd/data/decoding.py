"""Image files → one tensor of bytes; corrupt ones are counted and left out."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MODES = {1: "L", 3: "RGB"}
# What Pillow raises on broken files, by format and by place of the damage.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class Decoder:
    """Decodes images to one number of channels and one size, and remembers which ones were corrupt.

    Args:
        channels: 1 (grey) or 3 (RGB); images are converted where they are otherwise.
        side: height and width in pixels: the middle square of each image, scaled (bicubic). None leaves the images
            as they are; then all must have one size.
        max_corrupt: how many corrupt images are left out, over all splits, before decoding fails.
    """

    def __init__(self, channels: int, side: int | None, max_corrupt: int) -> None:
        self.channels, self.side, self.max_corrupt = channels, side, max_corrupt
        self.skipped: list[str] = []

    def decode(self, encoded: Iterable[Any], split: str) -> tuple[UInt8[Tensor, "N C H W"], list[int]]:
        """Decode the images of a split.

        Args:
            encoded: per image its file: bytes, or the hub's ``{"bytes": ..., "path": ...}``.
            split: what the split is called, for messages.

        Returns:
            The pixels, ``(N, C, H, W)``, and the index in the split of each image that is not corrupt.

        Raises:
            ValueError: images differ in size and no side was given, an image has more than 8 bits per channel, more
                images are corrupt than allowed, or none is left.
        """
        decoded: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
        kept: list[int] = []
        for index, value in enumerate(encoded):
            where = f"image {index} of the {split} split"
            try:
                image = _open(value)
            except _BROKEN as error:
                self._skip(f"{where} ({_reason(value, error)})", error)
                continue
            decoded.append(self._pixels(image, where))
            kept.append(index)
            if decoded[-1].shape != decoded[0].shape:
                (height, width, _), (first_height, first_width, _) = decoded[-1].shape, decoded[0].shape
                raise ValueError(
                    f"{where} is {height}×{width} pixels, image {kept[0]} is {first_height}×{first_width}: images must "
                    "have one size; set image_side to scale them all"
                )
        if not decoded:
            raise ValueError(f"the {split} split has no image that can be read")
        return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous(), kept

    def warn(self) -> None:
        """Say which images were left out, if any."""
        if self.skipped:
            # Stack level 2 would name a line of this package, which helps nobody.
            warnings.warn(f"left out {len(self.skipped)} corrupt: {'; '.join(self.skipped)}", stacklevel=1)

    def _skip(self, described: str, error: Exception) -> None:
        self.skipped.append(described)
        if len(self.skipped) > self.max_corrupt:
            raise ValueError(
                f"{described} is corrupt, and {self.max_corrupt} corrupt images are allowed (max_corrupt): repair or "
                "remove it, or allow more"
            ) from error

    def _pixels(self, image: Image.Image, where: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if image.mode.startswith(("I", "F")):  # Pillow would clip them without a word
            raise ValueError(f"{where} has more than 8 bits per channel (mode {image.mode}); convert it to 8 bits")
        image = image.convert(MODES[self.channels])
        if self.side is not None:
            image = ImageOps.fit(image, (self.side, self.side), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels.reshape(*pixels.shape[:2], self.channels)


def _open(value: Any) -> Image.Image:
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if content is None:
        if path is None:
            raise ValueError("there is neither a file nor its path")
        content = Path(path).read_bytes()
    image = Image.open(io.BytesIO(content))
    image.load()  # or damage would only show later
    return image


def _reason(value: Any, error: Exception) -> str:
    path = value.get("path") if isinstance(value, dict) else None
    reason = "not an image file" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"{path}: {reason}" if path else reason
