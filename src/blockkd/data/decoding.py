"""One image file → one tensor of bytes, and what evaluation sees of it."""

import importlib
import io
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from blockkd.data.corrupt import CorruptImageError, ImageFileError

MODES = {1: "L", 3: "RGB"}
# Of Pillow's many formats those that datasets come in. Some others start a program to be drawn (PostScript).
FORMATS = ("PNG", "JPEG", "JPEG2000", "WEBP", "GIF", "BMP", "TIFF", "PPM")
LARGEST_FILE = 2**28  # bytes
MOST_PIXELS = 89_000_000  # where Pillow begins to warn
# What Pillow raises on broken files, by format and by place of the damage.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class Decoder:
    """Decodes images to one number of channels, and cuts out what evaluation sees of them.

    Args:
        channels: 1 (grey) or 3 (RGB); images are converted where they are otherwise.
        side: height and width in pixels of what evaluation sees; None leaves images as they are.
        resize_side: the shorter side in pixels that an image is scaled to before the middle is cut out of it; None is
            ``side``.
    """

    def __init__(self, channels: int, side: int | None, resize_side: int | None) -> None:
        self.channels, self.side, self.resize_side = channels, side, resize_side
        self.settings = channels, side, resize_side
        self._functional = import_transforms().functional if side is not None else None

    def decode(self, file: Any, where: str) -> UInt8[Tensor, "C H W"]:
        """A whole image.

        Args:
            file: bytes, or the hub's ``{"bytes": ..., "path": ...}``.
            where: which image it is, for messages.

        Raises:
            CorruptImageError: the file cannot be read; the message names its path, where it has one, and the reason.
            ImageFileError: the image has more than 8 bits per channel.
        """
        try:
            image = _open(file)
        except _BROKEN as error:
            raise CorruptImageError(_reason(file, error)) from error
        if image.mode.startswith(("I", "F")):  # Pillow would clip them without a word
            raise ImageFileError(f"{where} has more than 8 bits per channel (mode {image.mode}); convert it to 8 bits")
        if image.mode != MODES[self.channels]:
            image = image.convert(MODES[self.channels])
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
        return pixels.view(*pixels.shape[:2], self.channels).permute(2, 0, 1)

    def fit(self, pixels: UInt8[Tensor, "C H W"]) -> UInt8[Tensor, "C H W"]:
        """What evaluation sees: the shorter side scaled to ``resize_side`` (bilinear, antialiased), and of that the
        middle square of ``side``. ImageNet's habit is 256 and 224.
        """
        if self._functional is None:
            return pixels
        resized = self._functional.resize(pixels, [self.resize_side or self.side], antialias=True)
        fitted: Tensor = self._functional.center_crop(resized, [self.side, self.side])
        return fitted


def import_transforms() -> Any:
    """``torchvision.transforms.v2``. Raises ModuleNotFoundError that says what to install."""
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "images are scaled by the library torchvision, which is missing: pip install torchvision"
        ) from error


def file_bytes(file: Any) -> bytes:
    """The bytes of a file that may be given as such, or as the hub's ``{"bytes": ..., "path": ...}``."""
    content, path = (file.get("bytes"), file.get("path")) if isinstance(file, dict) else (file, None)
    if content is not None:
        return bytes(content)
    if path is None:
        raise ValueError("there is neither a file nor its path")
    return _read_file(Path(path))


def _open(file: Any) -> Image.Image:
    image = Image.open(io.BytesIO(file_bytes(file)), formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} × {image.height} pixels, expected at most {MOST_PIXELS:,} in all")
    image.load()  # or damage would only show later
    return image


def _read_file(path: Path) -> bytes:
    status = path.stat()  # a path in a table can be any: a device never ends, a pipe waits
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
        raise ValueError(f"not a file of at most {LARGEST_FILE // 2**20} MiB")
    return path.read_bytes()


def _reason(file: Any, error: Exception) -> str:
    path = file.get("path") if isinstance(file, dict) else None
    reason = "not an image file" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"{path}: {reason}" if path else reason
