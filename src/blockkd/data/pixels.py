"""Images held in memory as bytes: normalised, and in training augmented, batch by batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from blockkd.data.images import EpochSampler, LabelledImages
from blockkd.randomness import derived_seed

PADDING = 4  # pixels on each side before the random crop: He et al., "Deep Residual Learning", CVPR 2016, section 4.2


class PixelImages(LabelledImages):
    """Images held as bytes, a quarter of the memory of floats; its items are normalised.

    Args:
        pixels: ``(N, C, H, W)``, 0 … 255; kept as they are in ``images``.
        labels: ``(N,)``, class numbers from 0.
        mean: per channel, of pixels scaled to 0 … 1.
        std: per channel, of pixels scaled to 0 … 1.
    """

    def __init__(
        self, pixels: UInt8[Tensor, "N C H W"], labels: Int[Tensor, " N"], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(pixels, labels)
        self.mean, self.std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))

    def normalise(self, pixels: UInt8[Tensor, "*B C H W"]) -> Float[Tensor, "*B C H W"]:
        """``(pixels / 255 - mean) / std``."""
        return (pixels.float() / 255 - self.mean) / self.std

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.normalise(self.images[index]), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A whole batch at once; the DataLoader prefers this to ``__getitem__``."""
        chosen = torch.tensor(indices)
        return list(zip(self.normalise(self.images[chosen]), self.labels[chosen], strict=True))


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
    batch, _, height, width = pixels.shape
    padded = F.pad(pixels, [PADDING] * 4)
    rows = corners[:, :1] + torch.arange(height)
    columns = corners[:, 1:] + torch.arange(width)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    windows = padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return windows.permute(0, 3, 1, 2).contiguous()


class AugmentedImages(Dataset[tuple[Tensor, Tensor]]):
    """``PixelImages`` under ``pad_crop_flip``, every window and mirroring equally likely.

    What happens to an image hangs on the sampler's seed and epoch and on the image's index alone: every method sees
    the same images, whatever the batch size and the number of workers, and a resumed epoch sees them too.

    Args:
        source: the images.
        sampler: gives seed and epoch.
    """

    def __init__(self, source: PixelImages, sampler: EpochSampler) -> None:
        self.source, self.sampler = source, sampler
        self._drawn_for: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A whole batch at once; the DataLoader prefers this to ``__getitem__``."""
        self._draw()
        chosen = torch.tensor(indices)
        windows = pad_crop_flip(self.source.images[chosen], self._corners[chosen], self._flipped[chosen])
        return list(zip(self.source.normalise(windows), self.source.labels[chosen], strict=True))

    def _draw(self) -> None:
        """Draw for all images of the epoch, once per epoch (workers start with a fresh copy each epoch)."""
        wanted = (self.sampler.seed, self.sampler.epoch)
        if self._drawn_for == wanted:
            return
        # The third number keeps this stream apart from that of the sampler's order.
        generator = torch.Generator().manual_seed(derived_seed(*wanted, 1))
        self._corners = torch.randint(0, 2 * PADDING + 1, (len(self), 2), generator=generator)
        self._flipped = torch.randint(0, 2, (len(self),), generator=generator).bool()
        self._drawn_for = wanted
