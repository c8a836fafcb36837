"""All images of a dataset → tensors of bytes in memory, if they fit."""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from blockkd.data.corrupt import CorruptImageError, CorruptImages, ImageFileError, place_name, warn
from blockkd.data.decoding import Decoder


def machine_memory() -> int | None:
    """The machine's memory in bytes, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


class MemoryLoader:
    """Decodes whole parts; corrupt images are counted and left out.

    Args:
        decoder: one file → one image.
        corrupt: counts those that cannot be read.
        total: how many images will be decoded, over all parts.
    """

    def __init__(self, decoder: Decoder, corrupt: CorruptImages, total: int) -> None:
        self.decoder, self.corrupt, self.total = decoder, corrupt, total
        self.left_out: list[str] = []
        self._first: dict[str, tuple[int, torch.Size]] = {}

    def load(self, files: Any, rows: Sequence[int], split: str) -> tuple[UInt8[Tensor, "N C H W"], list[int]]:
        """Decode some images of a split.

        Args:
            files: the image files of the split (a ``datasets.Dataset`` of one column).
            rows: which of them.
            split: what the split is called, for messages.

        Returns:
            The pixels, ``(N, C, H, W)``, and which of ``rows`` they are, each ``0 … len(rows) - 1``; no rows give no
            images of the size of this split's other images.

        Raises:
            ImageFileError: images differ in size and the decoder scales none, an image has more than 8 bits per
                channel, more are corrupt than allowed, or none is left.
            ValueError: the images of all parts would not fit into the machine's memory.
        """
        (column,) = files.column_names
        pixels: Tensor | None = None
        kept: list[int] = []
        chosen = (file for batch in files.select(rows).iter(batch_size=1000) for file in batch[column])
        for position, (row, file) in enumerate(zip(rows, chosen, strict=True)):
            try:
                image = self.decoder.fit(self.decoder.decode(file, place_name(split, row)))
            except CorruptImageError as error:
                self.left_out.append(self.corrupt.add(split, row, error))
                continue
            self._check_size(split, row, image.shape)
            if pixels is None:
                pixels = torch.empty((len(rows), *image.shape), dtype=torch.uint8)
            pixels[len(kept)] = image
            kept.append(position)
        if pixels is None:
            if len(rows):
                raise ImageFileError(f"the {split} split has no image that can be read")
            return torch.empty((0, *self._first[split][1]), dtype=torch.uint8), []
        return pixels[: len(kept)], kept

    def warn(self) -> None:
        """Say which images were left out, if any."""
        if self.left_out:
            warn(f"left out {len(self.left_out)} corrupt: {'; '.join(self.left_out)}")

    def _check_size(self, split: str, row: int, shape: torch.Size) -> None:
        if not self._first:
            self._check_memory(shape)
        first, wanted = self._first.setdefault(split, (row, shape))
        if shape != wanted:
            raise ImageFileError(
                f"{place_name(split, row)} is {shape[1]}×{shape[2]} pixels, image {first} is "
                f"{wanted[1]}×{wanted[2]}: images must have one size; set image_side to scale them all"
            )

    def _check_memory(self, shape: torch.Size) -> None:
        needed, there = self.total * math.prod(shape), machine_memory()
        if there is not None and needed > there:
            raise ValueError(
                f"{self.total} images of {shape[1]}×{shape[2]} pixels need {needed / 1e9:.1f} GB of memory, and the "
                f"machine has {there / 1e9:.1f} GB: set in_memory to false, which decodes images when they are used, "
                "or a smaller image_side"
            )
