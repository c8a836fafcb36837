"""Batches cut on the device itself, out of images that all lie there: no worker, no copy, no wait.

They are the DataLoader's batches, image for image: the order hangs on seed and epoch, the view of each image as well,
and both are drawn once an epoch.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DistributedSampler

from blockkd.devices import has_room

# What gives single items or parts of them. Where a subclass changes one of these, ``batch`` no longer speaks for it.
_ITEMS = ("__getitem__", "__getitems__", "fitted", "whole", "windows", "seen")


@runtime_checkable
class Resident(Protocol):
    """Images that can lie on a device, all of them."""

    @property
    def nbytes(self) -> int:
        """What they take on a device other than the CPU."""

    def on(self, device: torch.device) -> "Resident | None":
        """The same images there; None if they cannot be."""

    def drawn(self) -> Int[Tensor, " N"]:
        """Which view of each image is drawn in this epoch, ``(N,)``."""

    def batch(
        self, indices: Int[Tensor, " B"], views: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C H W"], Int[Tensor, " B"]]:
        """These views of the images at these indices, and their labels; all on one device."""


class ResidentLoader:
    """Gives the batches of an epoch.

    Args:
        images: where they are to be used.
        sampler: gives the order; Lightning tells it the epoch.
        batch_size: images in a batch.
        device: where the images lie.
        drop_last: leave out a smaller last batch.
        numbers: how much a batch says beside images and labels: 0 nothing, 1 the images' indices, 2 also their views.
    """

    batch_sampler = None  # Lightning looks at it beside ``sampler``, as DataLoaders have both

    def __init__(
        self,
        images: Resident,
        sampler: DistributedSampler[int],
        batch_size: int,
        device: torch.device,
        *,
        drop_last: bool = False,
        numbers: int = 0,
    ) -> None:
        self.images, self.sampler, self.batch_size = images, sampler, batch_size
        self.device, self.drop_last, self.numbers = device, drop_last, numbers
        self._first = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def begin_at(self, batch: int) -> None:
        """Let the next pass begin at this batch, counted from 0; passes after that are whole."""
        self._first = batch

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        first, self._first = self._first, 0
        order = torch.tensor(list(self.sampler)).to(self.device)
        views = self.images.drawn().to(self.device)
        for number in range(first, len(self)):
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            seen = views[indices]
            yield (*self.images.batch(indices, seen), *(indices, seen)[: self.numbers])


def resident(images: object, device: torch.device) -> Resident | None:
    """The images on the device, or None: they cannot lie there, there is no room, or their items are made otherwise."""
    if not isinstance(images, Resident) or not _batch_speaks_for_items(type(images)):
        return None
    return images.on(device) if has_room(images.nbytes, device) else None


def _batch_speaks_for_items(kind: type) -> bool:
    definers = {name: next((c for c in kind.__mro__ if name in vars(c)), object) for name in (*_ITEMS, "batch")}
    return all(issubclass(definers["batch"], definers[name]) for name in _ITEMS)
