"""What trained networks say of the test images, and the features that they see them by."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from blockkd.blocks import Blocks
from blockkd.calling import logits_of
from blockkd.reporting.similarity import Features, centred_gram

FEATURE_IMAGES, SCALE_IMAGES = 512, 256


def evenly(count: int, most: int) -> Int[Tensor, " N"]:
    """At most so many of the numbers 0 … count - 1, spread evenly, as images may be sorted by class; ``(N,)``."""
    return torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).round().long()


@torch.no_grad()
def all_logits(
    networks: Sequence[nn.Module],
    images: Dataset[tuple[Tensor, Tensor]],
    indices: Int[Tensor, " N"],
    device: torch.device,
    batch_size: int = 256,
) -> list[Float[Tensor, "N K"]]:
    """The logits of each network, in evaluation mode, ``(N, K)`` on the CPU; each image is read once.

    Args:
        networks: map a batch to logits.
        images: what is evaluated on.
        indices: which of them, ``(N,)``.
        device: where the networks run.
        batch_size: images at once.
    """
    for network in networks:
        network.to(device).eval()
    rows: list[list[Tensor]] = [[] for _ in networks]
    for batch in _batches(images, indices, batch_size):
        there = batch.to(device)
        for found, network in zip(rows, networks, strict=True):
            found.append(logits_of(network, there).float().cpu())
    return [torch.cat(found) for found in rows]


class Pixels:
    """Images as they are looked at, pixels 0 … 1: the data's normalisation is taken back where it is known.

    Args:
        images: what is looked at; with ``mean`` and ``std`` per channel where they were used.
        indices: which of them, ``(N,)``.
    """

    def __init__(self, images: Dataset[tuple[Tensor, Tensor]], indices: Int[Tensor, " N"]) -> None:
        self.images, self.indices = images, indices
        mean, std = getattr(images, "mean", None), getattr(images, "std", None)
        if isinstance(mean, Tensor) and isinstance(std, Tensor):
            self.offset, self.scale = mean.cpu(), std.cpu()
        else:  # from the darkest to the brightest pixel of some of them
            some = torch.stack([images[i][0] for i in indices[evenly(len(indices), SCALE_IMAGES)].tolist()])
            low, high = some.min(), some.max()
            self.offset, self.scale = -low / (high - low).clamp(min=1e-6), 1 / (high - low).clamp(min=1e-6)

    def __call__(self, number: int) -> Float[Tensor, "C H W"]:
        """The image of this number, 0 … N - 1."""
        image: Tensor = self.images[int(self.indices[number])][0]
        return image.cpu() * self.scale + self.offset


@torch.no_grad()
def features_of(
    blocks: Mapping[str, Blocks],
    images: Dataset[tuple[Tensor, Tensor]],
    indices: Int[Tensor, " M"],
    device: torch.device,
) -> dict[str, Features]:
    """Each network's features of the images, block by block.

    Args:
        blocks: by name, cut networks.
        images: what is looked at.
        indices: which of them, ``(M,)``; a few hundred, as their features are all held at once.
        device: where the networks run.
    """
    found = {}
    for name, network in blocks.items():
        network.to(device).eval()
        batches = [network.run(batch.to(device))[0] for batch in _batches(images, indices, 128)]
        grams, last = [], torch.empty(0)
        for place in range(len(network)):
            values = torch.cat([features[place].float().cpu() for features in batches])
            grams.append(centred_gram(values))
            last = values
        found[name] = Features(grams, _pooled(last))
    return found


def _pooled(features: Tensor) -> Tensor:
    """``(M, C, H, W)`` or ``(M, L, D)`` → the mean over the grid or the tokens."""
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features.mean(dim=1) if features.ndim == 3 else features


def _batches(images: Dataset[tuple[Tensor, Tensor]], indices: Tensor, batch_size: int) -> Iterator[Tensor]:
    for batch, _ in DataLoader(Subset(images, indices.tolist()), batch_size=batch_size):
        yield batch
