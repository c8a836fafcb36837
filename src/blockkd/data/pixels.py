"""Images as bytes: kept in memory or decoded when they are used; normalised batch by batch."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from blockkd.data.corrupt import CorruptImageError, CorruptImages, ImageFileError, place_name, warn
from blockkd.data.decoding import Decoder, file_bytes
from blockkd.data.images import LabelledImages

IDENTIFIED = 1000  # files at the least that are read to tell images apart which are too many to be read all


class RawImages(LabelledImages, ABC):
    """Images that can be had as bytes; its items are normalised.

    Args:
        images: as the subclass says.
        labels: ``(N,)``, class numbers from 0.
        mean: per channel, of pixels scaled to 0 … 1.
        std: per channel, of pixels scaled to 0 … 1.
    """

    def __init__(self, images: Any, labels: Int[Tensor, " N"], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(images, labels)
        self.mean, self.std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))

    @abstractmethod
    def whole(self, indices: list[int]) -> tuple[Iterable[UInt8[Tensor, "C H W"]], Int[Tensor, " B"]]:
        """Whole images, which may differ in size, and their labels ``(B,)``."""

    @abstractmethod
    def fitted(self, indices: list[int]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """What evaluation sees of images, ``(B, C, H, W)``, and their labels ``(B,)``."""

    def normalise(self, pixels: UInt8[Tensor, "*B C H W"]) -> Float[Tensor, "*B C H W"]:
        """``(pixels / 255 - mean) / std``."""
        return (pixels.float() / 255 - self.mean) / self.std

    def identity(self) -> dict[str, str]:
        """A hash of all pixels, and what they are normalised by."""
        return super().identity() | self.normalisation()

    def normalisation(self) -> dict[str, str]:
        """What the images are normalised by, as part of their identity."""
        mean, std = (values.flatten().tolist() for values in (self.mean, self.std))
        return {"normalisation": f"mean {mean}, std {std}"}

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A whole batch at once; the DataLoader prefers this to ``__getitem__``."""
        pixels, labels = self.fitted(indices)
        return list(zip(self.normalise(pixels), labels, strict=True))


class PixelImages(RawImages):
    """Images held in memory as bytes, a quarter of the memory of floats.

    Args:
        pixels: ``(N, C, H, W)``, 0 … 255; kept as they are in ``images``.
        labels: ``(N,)``, class numbers from 0.
        mean: per channel, of pixels scaled to 0 … 1.
        std: per channel, of pixels scaled to 0 … 1.
    """

    images: Tensor

    def __init__(
        self, pixels: UInt8[Tensor, "N C H W"], labels: Int[Tensor, " N"], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(pixels, labels, mean, std)

    def whole(self, indices: list[int]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """The images as they are in memory."""
        chosen = torch.tensor(indices)
        return self.images[chosen], self.labels[chosen]

    def fitted(self, indices: list[int]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """The images as they are in memory."""
        return self.whole(indices)

    def on(self, device: torch.device) -> "PixelImages":
        """The same images on a device; images that lie there are not copied."""
        there = super().on(device)
        assert isinstance(there, PixelImages)
        there.mean, there.std = self.mean.to(device), self.std.to(device)
        return there

    def batch(
        self, indices: Int[Tensor, " B"], views: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """Normalised images and labels at these indices, which lie on the images' device."""
        pixels, labels = super().batch(indices, views)
        return self.normalise(pixels), labels


class EncodedImages(RawImages):
    """Images that stay files, in a table on disk or in a folder, and are decoded when they are used.

    In the place of a corrupt image stands, for good, the next one of this part that can be read, with its label: what
    is at an index never changes, whoever asks for it first.

    Args:
        files: of a split, as ``datasets.Dataset`` of one column.
        rows: which of them are in this part.
        labels: ``(N,)``, class numbers from 0, one per row.
        mean: per channel, of pixels scaled to 0 … 1.
        std: per channel, of pixels scaled to 0 … 1.
        split: what the split is called, for messages.
        decoder: one file → one image.
        corrupt: counts those that cannot be read.
    """

    def __init__(
        self,
        files: Any,
        rows: Sequence[int],
        labels: Int[Tensor, " N"],
        mean: Sequence[float],
        std: Sequence[float],
        split: str,
        decoder: Decoder,
        corrupt: CorruptImages,
    ) -> None:
        super().__init__(files.select(rows), labels, mean, std)
        self.rows, self.split, self.decoder, self.corrupt = rows, split, decoder, corrupt
        (self._column,) = files.column_names

    def identity(self) -> dict[str, str]:
        """A hash of which images these are, of their labels, and of some of the files, evenly spread."""
        some = range(0, len(self), max(1, len(self) // IDENTIFIED))
        digest = hashlib.sha256(repr((list(self.rows), self.labels.tolist(), self.decoder.settings)).encode())
        for file in self.images[list(some)][self._column]:
            digest.update(file_bytes(file))
        said = f"{digest.hexdigest()} (of {len(some)} of {len(self)} files)"
        return self.normalisation() | {"images": said, "augmentation": "none"}

    def whole(self, indices: list[int]) -> tuple[list[UInt8[Tensor, "C H W"]], Int[Tensor, " B"]]:
        """The images as they are in their files.

        Raises:
            ImageFileError: more images are corrupt than allowed, or none can be read, or one has more than 8 bits.
        """
        files = self.images[indices][self._column]
        found = [self._readable(index, file) for index, file in zip(indices, files, strict=True)]
        return [image for image, _ in found], self.labels[[index for _, index in found]]

    def fitted(self, indices: list[int]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """The middle of the images, scaled as the decoder says.

        Raises:
            ImageFileError: as ``whole``, or images differ in size and the decoder scales none.
        """
        images, labels = self.whole(indices)
        fitted = [self.decoder.fit(image) for image in images]
        for index, image in zip(indices, fitted, strict=True):
            if image.shape != fitted[0].shape:
                (_, height, width), (_, first_height, first_width) = image.shape, fitted[0].shape
                raise ImageFileError(
                    f"{place_name(self.split, self.rows[index])} is {height}×{width} pixels, image "
                    f"{self.rows[indices[0]]} is {first_height}×{first_width}: images must have one size; set "
                    "image_side to scale them all"
                )
        return torch.stack(fitted), labels

    def _readable(self, index: int, file: Any) -> tuple[UInt8[Tensor, "C H W"], int]:
        """The image at an index or the next one that can be read, and where it is."""
        for candidate in chain(range(index, len(self)), range(index)):
            row = self.rows[candidate]
            if (self.split, row) in self.corrupt:
                continue
            content = file if candidate == index else self.images[candidate][self._column]
            try:
                return self.decoder.decode(content, place_name(self.split, row)), candidate
            except CorruptImageError as error:
                described = self.corrupt.add(self.split, row, error)
                warn(f"{described} is corrupt: the next one that can be read stands in for it")
        raise ImageFileError(f"the {self.split} split has no image that can be read")
