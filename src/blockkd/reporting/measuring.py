"""What trained networks say of the test part, and the features that they see it by."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from blockkd.blocks import Blocks
from blockkd.calling import Inputs, logits_of
from blockkd.data.images import ImageData, LabelledImages
from blockkd.reporting.similarity import Features, centred_gram

FEATURE_SAMPLES, SCALE_IMAGES = 512, 256


def evenly(count: int, most: int) -> Int[Tensor, " N"]:
    """At most so many of the numbers 0 … count - 1, spread evenly, as samples may be sorted by class; ``(N,)``."""
    return torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).round().long()


@torch.no_grad()
def all_logits(
    networks: Sequence[nn.Module],
    data: ImageData,
    indices: Int[Tensor, " N"],
    device: torch.device,
    batch_size: int = 256,
) -> list[Float[Tensor, "N K"]]:
    """The logits of each network, in evaluation mode, ``(N, K)`` on the CPU; each sample is read once.

    Args:
        networks: map a batch to logits.
        data: whose test part is evaluated on.
        indices: which of its samples, ``(N,)``.
        device: where the networks run.
        batch_size: samples at once.
    """
    for network in networks:
        network.to(device).eval()
    rows: list[list[Tensor]] = [[] for _ in networks]
    for batch in _batches(data, indices, batch_size, device):
        for found, network in zip(rows, networks, strict=True):
            found.append(logits_of(network, batch).float().cpu())
    return [torch.cat(found) for found in rows]


class Pixels:
    """Images as they are looked at, pixels 0 … 1: the data's normalisation is taken back where it is known.

    Args:
        images: what is looked at; with ``mean`` and ``std`` per channel where they were used.
        indices: which of them, ``(N,)``.
    """

    def __init__(self, images: LabelledImages, indices: Int[Tensor, " N"]) -> None:
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
    data: ImageData,
    indices: Int[Tensor, " M"],
    device: torch.device,
) -> dict[str, Features]:
    """Each network's features of the test part, block by block; of sentences the mean over their tokens.

    Args:
        blocks: by name, cut networks.
        data: whose test part is looked at.
        indices: which of its samples, ``(M,)``; a few hundred, as their features are all held at once.
        device: where the networks run.
    """
    found = {}
    for name, network in blocks.items():
        network.to(device).eval()
        batches = [(batch, network.run(batch)[0]) for batch in _batches(data, indices, 128, device)]
        grams, last = [], torch.empty(0)
        for place in range(len(network)):
            values = torch.cat([_comparable(features[place], batch).float().cpu() for batch, features in batches])
            grams.append(centred_gram(values))
            last = values
        found[name] = Features(grams, _pooled(last))
    return found


def mean_of_tokens(hidden: Float[Tensor, "B L D"], mask: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The mean over a sentence's own tokens.

    Args:
        hidden: a width for each token ``(B, L, D)``.
        mask: 0 on padding, ``(B, L)``.
    """
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _comparable(features: Tensor, batch: Inputs) -> Tensor:
    """As large in every batch: sentences are padded to other lengths in each."""
    mask = None if isinstance(batch, Tensor) else batch.get("attention_mask")
    return features if mask is None or features.ndim != 3 else mean_of_tokens(features, mask)


def _pooled(features: Tensor) -> Tensor:
    """``(M, C, H, W)`` or ``(M, L, D)`` → the mean over the grid or the tokens."""
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features.mean(dim=1) if features.ndim == 3 else features


def _batches(data: ImageData, indices: Tensor, batch_size: int, device: torch.device) -> Iterator[Inputs]:
    for some in indices.split(batch_size):
        yield move_data_to_device(data.some(data.parts.test, some.tolist())[0], device)
