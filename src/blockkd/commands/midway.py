"""Goes on in the middle of an epoch, to the bit: what that takes beside what Lightning's checkpoints hold."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import BatchSampler, DataLoader, Sampler

from blockkd.commands.stopping import Stop
from blockkd.data.augmentation import AugmentedImages
from blockkd.data.images import ImageData, LabelledImages, Loader, NumberedImages
from blockkd.data.resident import ResidentLoader
from blockkd.data.sampling import EpochSampler
from blockkd.training import DistillationModule

# How old the last checkpoint may get within an epoch, in seconds; and before the validation, which is not resumed.
OLDEST, OLDEST_BEFORE_VALIDATION = 600.0, 60.0


class Midway(Callback):
    """Saves in the middle of an epoch, when a signal asks for it or the last checkpoint is old, and goes on there.

    Lightning saves and restores weights, optimizer, schedule and counters, the module the sums behind the epoch's
    means. What is left: the random numbers, the place in the data, and what the method was told about the epoch.

    Only where the rest of the epoch is sure to be the same: one process, and batches that hang on seed, epoch and index
    or are made in this very process. Otherwise the epoch is done again from its start, when the job goes on.

    Args:
        path: of the checkpoint.
        stop: says when a signal has come.
    """

    def __init__(self, path: Path, stop: Stop) -> None:
        self.path, self.stop = path, stop
        self.batches = 0  # of the first epoch, which an earlier process has done
        self._resumed: dict[str, Any] | None = None
        self._state: dict[str, Any] = {}  # only while a checkpoint in the middle of an epoch is written
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Nothing at the end of an epoch."""
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a checkpoint from the middle of an epoch."""
        self.batches, self._resumed = state_dict["batches"], state_dict

    @contextmanager
    def positioned(self, data: ImageData) -> Iterator[None]:
        """Let the training data begin where the checkpoint ended; what was seen before is not even loaded."""
        make = data.train_dataloader

        def train_dataloader() -> Loader:
            loader = make()
            if self.batches:
                begin_at(loader, self.batches)
            return loader

        data.train_dataloader = train_dataloader  # type: ignore[method-assign]
        try:
            yield
        finally:
            del data.train_dataloader

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which would stop between two batches of one step; restore."""
        if trainer.world_size == 1:
            self.stop.listen()
        if self._resumed is not None:
            assert isinstance(pl_module, DistillationModule)
            pl_module.distiller.set_epoch(trainer.current_epoch)
            set_random_states(self._resumed["random"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch before has been saved."""
        del trainer, pl_module
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; stop if that was asked for."""
        del outputs, batch
        self._resumed = None
        left = int(trainer.num_training_batches) - (batch_idx + 1)
        if left == 0 or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        oldest = OLDEST if left > trainer.accumulate_grad_batches else OLDEST_BEFORE_VALIDATION
        if (self.stop.received or time.monotonic() - self._saved > oldest) and _is_repeatable(trainer):
            self._save(trainer, pl_module, batch_idx + 1)
        self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop if that was asked for: the last checkpoint will do."""
        del args, kwargs
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if trainer.world_size == 1:  # or else the other ranks would wait for this one: Lightning stops them together
            self.stop.raise_if_received()

    def _save(self, trainer: Trainer, pl_module: LightningModule, batches: int) -> None:
        assert isinstance(pl_module, DistillationModule)
        if pl_module.recorded is not None:  # or else the teacher would be asked again, with other images beside them
            pl_module.recorded.flush()
        self._state = {"batches": batches, "random": random_states()}
        try:
            trainer.save_checkpoint(self.path)
        finally:
            self._state = {}
        self._saved = time.monotonic()


class Rest(Sampler[int]):
    """The samples of an epoch without the first ones; from the next epoch on, all.

    Args:
        source: gives the order.
        skipped: how many are left out.
    """

    def __init__(self, source: EpochSampler, skipped: int) -> None:
        self.source, self.skipped = source, skipped

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch, counted from 0."""
        self.source.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[int]:
        skipped, self.skipped = self.skipped, 0
        return islice(self.source, skipped, None)


def begin_at(loader: Loader, batch: int) -> None:
    """Let the next pass over a loader begin at this batch, counted from 0; passes after that are whole."""
    if isinstance(loader, ResidentLoader):
        loader.begin_at(batch)
        return
    batches = loader.batch_sampler
    assert isinstance(batches, BatchSampler)
    assert isinstance(batches.sampler, EpochSampler)
    batches.sampler = Rest(batches.sampler, batch * batches.batch_size)


def random_states() -> dict[str, Any]:
    """Where the random numbers of this process are, as plain data."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put the random numbers of this process where they were."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def _is_repeatable(trainer: Trainer) -> bool:
    """Whether another process would make the same batches of the rest of the epoch."""
    loader: Any = trainer.train_dataloader
    if trainer.world_size > 1 or not isinstance(loader, DataLoader):
        return trainer.world_size == 1 and isinstance(loader, ResidentLoader)
    sampler = getattr(loader.batch_sampler, "sampler", None)
    images = loader.dataset.source if isinstance(loader.dataset, NumberedImages) else loader.dataset
    # A dataset of the user's own may draw random numbers in a worker, where nobody can put them back.
    drawn_by_index = isinstance(images, LabelledImages | AugmentedImages)
    return isinstance(sampler, EpochSampler | Rest) and (loader.num_workers == 0 or drawn_by_index)
