"""What happens to training images: it hangs on the run's seed, the epoch and the image's index alone.

So every method sees the same images, whatever the batch size and the number of workers, and a resumed epoch sees them
too.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from blockkd.data.decoding import import_transforms
from blockkd.data.images import EpochSampler
from blockkd.data.pixels import RawImages
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
    batch, channels, height, width = pixels.shape
    padded = F.pad(pixels, [PADDING] * 4)
    rows = corners[:, :1] + torch.arange(height)
    columns = corners[:, 1:] + torch.arange(width)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    chosen = places.view(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, chosen).view_as(pixels)


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

    def windows(self, indices: list[int]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """Padded, cropped, mirrored."""
        return self.seen(indices, self.views(indices))

    def seen(self, indices: list[int], views: Int[Tensor, " B"]) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """These views of images, ``(B, C, H, W)``, and their labels ``(B,)``."""
        pixels, labels = self.source.fitted(indices)
        places = views // 2
        return pad_crop_flip(pixels, torch.stack((places // CORNERS, places % CORNERS), 1), views % 2 == 1), labels

    def views(self, indices: list[int]) -> Int[Tensor, " B"]:
        """Which views of these images are drawn in this epoch, ``(B,)``, each 0 … 161."""
        self._draw()
        return self._views[torch.tensor(indices)]

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
                seed = derived_seed(self.sampler.seed, self.sampler.epoch, _BOXES, index)
                torch.default_generator.manual_seed(seed)
                windows.append(self._flip(self._crop(image)))
        return torch.stack(windows), labels
