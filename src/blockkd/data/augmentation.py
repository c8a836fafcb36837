"""What happens to training images: it hangs on the run's seed, the epoch and the image's index alone.

So every method sees the same images, whatever the batch size and the number of workers, and a resumed epoch sees them
too.
"""

import copy
from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from blockkd.data.decoding import import_transforms
from blockkd.data.pixels import RawImages
from blockkd.data.sampling import EpochSampler
from blockkd.randomness import derived_seed

PADDING = 4  # pixels on each side before the random crop: He et al., "Deep Residual Learning", CVPR 2016, section 4.2
CORNERS = 2 * PADDING + 1  # places for the window along each side
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6
_CORNERS, _BOXES = 1, 2  # keep the streams of random numbers apart from each other and from that of the order


def pad_crop_flip(
    pixels: UInt8[Tensor, "B C H W"], corners: Int[Tensor, "B 2"], flipped: Bool[Tensor, " B"]
) -> UInt8[Tensor, "B C H W"]:
    """Pad with zeros by 4 pixels, cut a window of the old size out of each image, and mirror some of them.

    The field's augmentation for CIFAR: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    section 4.2. Pixels are padded raw, so that the border is black and not the mean.

    Args:
        pixels: ``(B, C, H, W)``.
        corners: ``(B, 2)``, row and column of each window's upper left corner in the padded image, 0 … 8.
        flipped: ``(B,)``, which windows are mirrored left to right.
    """
    return crop_flip(pad(pixels), torch.arange(len(pixels), device=pixels.device), corners, flipped)


def pad(pixels: UInt8[Tensor, "N C H W"]) -> UInt8[Tensor, "N C H+8 W+8"]:
    """Put 4 zeros around each image."""
    return F.pad(pixels, [PADDING] * 4)


def crop_flip(
    padded: UInt8[Tensor, "N C H+8 W+8"],
    indices: Int[Tensor, " B"],
    corners: Int[Tensor, "B 2"],
    flipped: Bool[Tensor, " B"],
) -> UInt8[Tensor, "B C H W"]:
    """What comes after the padding in ``pad_crop_flip``, for those images of many that ``indices`` names, ``(B,)``."""
    height, width = padded.shape[2] - 2 * PADDING, padded.shape[3] - 2 * PADDING
    every = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view, (N, C, 9, 9, H, W): every window there is
    windows = every.permute(0, 2, 3, 1, 4, 5)[indices, corners[:, 0], corners[:, 1]]
    return torch.where(flipped[:, None, None, None], windows.flip(3), windows)


class AugmentedImages(Dataset[tuple[Tensor, Tensor]], ABC):
    """Images that look different in every epoch; its items are normalised.

    Args:
        source: the images.
        sampler: gives seed and epoch.
    """

    def __init__(self, source: RawImages, sampler: EpochSampler) -> None:
        self.source, self.sampler = source, sampler

    @abstractmethod
    def windows(self, indices: list[int]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """What is left of the images in this epoch, ``(B, C, H, W)``, and their labels ``(B,)``."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A whole batch at once; the DataLoader prefers this to ``__getitem__``."""
        windows, labels = self.windows(indices)
        return list(zip(self.source.normalise(windows), labels, strict=True))


class PadCropFlip(AugmentedImages):
    """What evaluation sees of the images under ``pad_crop_flip``, every window and mirroring equally likely.

    The view of a window at row r and column c of the padded image is ``(9 r + c) · 2``, and one more when mirrored.
    """

    n_views = CORNERS * CORNERS * 2

    def __init__(self, source: RawImages, sampler: EpochSampler) -> None:
        super().__init__(source, sampler)
        self._drawn_for: tuple[int, int] | None = None
        self._padded: Tensor | None = None  # all images, once for all, on a device other than the CPU

    def windows(self, indices: list[int]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """Padded, cropped, mirrored."""
        return self.seen(indices, self.drawn()[indices])

    def seen(self, indices: list[int], views: Int[Tensor, " B"]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """These views of images, ``(B, C, H, W)``, and their labels ``(B,)``."""
        pixels, labels = self.source.fitted(indices)
        return pad_crop_flip(pixels, *_corners_and_flips(views)), labels

    @property
    def nbytes(self) -> int:
        """What the padded images take in memory."""
        if not isinstance(self.source.images, Tensor):
            return 0
        count, channels, height, width = self.source.images.shape
        return count * channels * (height + 2 * PADDING) * (width + 2 * PADDING)

    def on(self, device: torch.device) -> "PadCropFlip | None":
        """The same images on a device, padded once for all, or None where they are not in memory."""
        source = self.source.on(device)
        if not isinstance(source, RawImages):
            return None
        there = copy.copy(self)
        there.source, there._padded = source, None if device.type == "cpu" else pad(source.images)
        return there

    def batch(
        self, indices: Int[Tensor, " B"], views: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """These views of the images at these indices, all on the images' device, and their labels."""
        corners, flipped = _corners_and_flips(views)
        if self._padded is None:
            windows = pad_crop_flip(self.source.images[indices], corners, flipped)
        else:
            windows = crop_flip(self._padded, indices, corners, flipped)
        return self.source.normalise(windows), self.source.labels[indices]

    def drawn(self) -> Int[Tensor, " N"]:
        """Which view of each image is drawn in this epoch, ``(N,)``, each 0 … 161."""
        self._draw()
        return self._views

    def identity(self) -> dict[str, str]:
        """What the images themselves hang on, and the padding."""
        return self.source.identity() | {"augmentation": f"pad by {PADDING}, crop, flip"}

    def _draw(self) -> None:
        """Draw for all images of the epoch, once per epoch and process."""
        wanted = (self.sampler.seed, self.sampler.epoch)
        if self._drawn_for == wanted:
            return
        generator = torch.Generator().manual_seed(derived_seed(*wanted, _CORNERS))
        corners = torch.randint(0, CORNERS, (len(self), 2), generator=generator)
        flipped = torch.randint(0, 2, (len(self),), generator=generator)
        self._views = (corners[:, 0] * CORNERS + corners[:, 1]) * 2 + flipped
        self._drawn_for = wanted


def _corners_and_flips(views: Int[Tensor, " B"]) -> tuple[Int[Tensor, "B 2"], Bool[Tensor, " B"]]:
    places = views // 2
    return torch.stack((places // CORNERS, places % CORNERS), 1), views % 2 == 1


class RandomResizedCrop(AugmentedImages):
    """A box of each whole image, scaled to one size (bilinear, antialiased), and half of them mirrored.

    The field's augmentation for ImageNet: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6: the
    box has 8 % to 100 % of the image's area and an aspect ratio between 3:4 and 4:3. The arithmetic is torchvision's.

    Args:
        source: the images.
        sampler: gives seed and epoch.
        size: height and width in pixels of what comes out.
    """

    def __init__(self, source: RawImages, sampler: EpochSampler, size: tuple[int, int]) -> None:
        super().__init__(source, sampler)
        transforms = import_transforms()
        self._crop = transforms.RandomResizedCrop(size, scale=SCALE, ratio=RATIO, antialias=True)
        self._flip = transforms.RandomHorizontalFlip()

    def windows(self, indices: list[int]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """Cropped, scaled, mirrored."""
        images, labels = self.source.whole(indices)
        windows = []
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the process's own generator
            for index, image in zip(indices, images, strict=True):
                torch.default_generator.manual_seed(self._seed(index))
                windows.append(self._flip(self._crop(image)))
        return torch.stack(windows), labels

    def _seed(self, index: int) -> int:
        return derived_seed(self.sampler.seed, self.sampler.epoch, _BOXES, index)


class CountedCrops(RandomResizedCrop):
    """The same with finitely many boxes of each image, numbered: in epoch e it is the one of number e modulo n.

    They hang on the image alone, so that what a teacher said of them holds for all students and seeds.

    Args:
        source: the images.
        sampler: gives the epoch.
        size: height and width in pixels of what comes out.
        n_views: n.
    """

    def __init__(self, source: RawImages, sampler: EpochSampler, size: tuple[int, int], n_views: int) -> None:
        super().__init__(source, sampler, size)
        self.n_views, self.size = n_views, size
        self._views: dict[int, int] = {}  # of single images, where others than the epoch's are asked for

    def drawn(self) -> Int[Tensor, " N"]:
        """The same number for all images, ``(N,)``."""
        return torch.full((len(self),), self.sampler.epoch % self.n_views)

    def batch(
        self, indices: Int[Tensor, " B"], views: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """These views of the images at these indices, and their labels."""
        self._views = dict(zip(indices.tolist(), views.tolist(), strict=True))
        try:
            windows, labels = self.windows(indices.tolist())
        finally:
            self._views = {}
        return self.source.normalise(windows), labels

    def identity(self) -> dict[str, str]:
        """What the images themselves hang on, and how many boxes of which size are drawn."""
        height, width = self.size
        augmentation = f"{self.n_views} random resized crops to {height}×{width}, flip"
        return self.source.identity() | {"augmentation": augmentation}

    def _seed(self, index: int) -> int:
        return derived_seed(_BOXES, self._views.get(index, self.sampler.epoch % self.n_views), index)
