"""In which order samples are seen: shuffled by seed and epoch alone for training, as they are for evaluation."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DistributedSampler

from blockkd.randomness import derived_seed


class EpochSampler(DistributedSampler[int]):
    """Shuffles by seed and epoch alone, so that every method sees the same order, and a resumed epoch too.

    Of several processes each takes every so-many-eth sample of the one order: at equal global batch size their batches
    together are those of a single process. What does not fill a round of all processes is left out.

    Lightning calls ``set_epoch`` before each epoch. Worker processes that live on from epoch to epoch see the epoch
    change. ``worker_generator`` is meant for the DataLoader, so that the randomness of workers that start anew hangs
    on seed and epoch as well.

    Args:
        length: the number of samples.
        seed: the run's seed.
        ranks: how many processes share the samples.
        rank: which of them this is, ``0 … ranks - 1``.
    """

    def __init__(self, length: int, seed: int, ranks: int = 1, rank: int = 0) -> None:
        # Being a DistributedSampler keeps Lightning from putting one of its own around this one.
        self.worker_generator = torch.Generator()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.seed = seed
        super().__init__(range(length), ranks, rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.length = length
        self.set_epoch(0)

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)
        self.worker_generator.manual_seed(derived_seed(self.seed, epoch))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch, counted from 0."""
        self.epoch = epoch

    def order(self) -> Int[Tensor, " N"]:
        """This process's samples in the order of the epoch."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        whole = torch.randperm(self.length, generator=generator)
        return whole[: len(self) * self.num_replicas][self.rank :: self.num_replicas]

    def __len__(self) -> int:
        return self.length // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        yield from self.order().tolist()


class ShareSampler(DistributedSampler[int]):
    """All samples in order; of several processes each takes every so-many-eth, and none is taken twice.

    Args:
        length: the number of samples.
        ranks: how many processes share the samples.
        rank: which of them this is, ``0 … ranks - 1``.
    """

    def __init__(self, length: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(range(length), ranks, rank, shuffle=False)  # type: ignore[arg-type]
        self.own = range(length)[rank::ranks]

    def __len__(self) -> int:
        return len(self.own)

    def __iter__(self) -> Iterator[int]:
        return iter(self.own)
