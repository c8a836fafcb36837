"""Trains one job of a run under Lightning, from its checkpoint where there is one."""

import dataclasses
import logging
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from blockkd.commands.best import BestEpoch
from blockkd.commands.checkpoints import SealedCheckpoints, usable_checkpoint
from blockkd.commands.midway import Midway
from blockkd.commands.recipe import OptimizerFactory, TrainerOptions
from blockkd.commands.slices import Deadline, StopInTime
from blockkd.commands.stopping import Stop, Terminated
from blockkd.data.images import ImageData
from blockkd.distiller import Distiller
from blockkd.durable import remove_drafts
from blockkd.randomness import derived_seed
from blockkd.runs import BEST, CHECKPOINT, Job, Row, RunFolder
from blockkd.text.glue import Glue
from blockkd.text.training import TextDistillationModule
from blockkd.training import DistillationModule

_TELLS_NOTHING = (  # what Lightning warns of though it is so on purpose, or changes nothing here
    "does not have many workers",
    "is smaller than the logging interval",
    "Checkpoint directory .* exists",
    "but CUDA is available|GPU available but not used|MPS available but not used",
    "is deprecated",
    "`isinstance\\(treespec",
    "your dataloader is not resumable",  # but it is positioned, see midway.py
)


class EpochSeed(Callback):
    """Makes the randomness of an epoch (dropout, augmentation) hang on seed and epoch alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reseed."""
        del pl_module
        seed_everything(derived_seed(self.seed, trainer.current_epoch), verbose=False)


class EpochRows(Callback):
    """One row of metrics per epoch; part of the checkpoint, so that a resumed job goes on with the rows it had."""

    def __init__(self, folder: RunFolder, job: Job) -> None:
        self.folder, self.job = folder, job
        self.rows: list[Row] = []
        self._started, self._lr = 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and what is known of the next one."""
        return {"rows": self.rows, "lr": self._lr, "seconds": time.perf_counter() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of the checkpoint."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._lr, self._started = state_dict["lr"], time.perf_counter() - state_dict["seconds"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; the learning rate is noted before the schedule moves it on."""
        del pl_module
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row and write all of them."""
        del pl_module
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append(
            {
                "method": self.job.method,
                "seed": self.job.seed,
                "epoch": trainer.current_epoch,
                "lr": self._lr,
                **{name: values[name] for name in sorted(values)},
                "seconds": time.perf_counter() - self._started,
            }
        )
        if trainer.is_global_zero:
            self.folder.write_metrics(self.job, self.rows, flush=False)  # the checkpoint has them, too


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back Lightning's banners and the warnings that tell a user nothing; all other warnings pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _TELLS_NOTHING:
            warnings.filterwarnings("ignore", message=f".*({message})")
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def make_trainer(
    options: TrainerOptions,
    epochs: int = 1,
    callbacks: list[Callback] | None = None,
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """Lightning's Trainer with the recipe's options, and with nothing printed, or logged but by ``loggers``."""
    return Trainer(
        **dataclasses.asdict(options),
        max_epochs=epochs,
        callbacks=callbacks or [],
        plugins=[SealedCheckpoints()],
        logger=list(loggers) or False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks or []),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def fit(
    module: DistillationModule,
    data: ImageData,
    folder: RunFolder,
    job: Job,
    epochs: int,
    options: TrainerOptions,
    line: Callback,
    deadline: Deadline,
    watchers: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> list[Row]:
    """Train for ``epochs``, from the job's checkpoint where there is one that is whole; ``line`` shows how it goes.

    Returns:
        The rows of metrics of all epochs so far; fewer than ``epochs`` when time ran out.

    Raises:
        DivergedError: a loss term became NaN or infinite.
        OSError: the disk is full, or cannot be written; the last checkpoint is still there.
        KeyboardInterrupt: a signal stopped it, of which Terminated says that it was SIGTERM; the last step, or at least
            the last epoch, is in the checkpoint.
    """
    data.order_seed, data.numbers_views = job.seed, module.recorded is not None
    home = folder.job_folder(job)
    remove_drafts(home)
    stop = Stop()
    rows, midway = EpochRows(folder, job), Midway(home / CHECKPOINT, stop)
    checkpoint = ModelCheckpoint(home, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks = [EpochSeed(job.seed), rows, line, StopInTime(deadline), midway, checkpoint]
    callbacks += watchers
    if module.watched == "val":
        callbacks.append(BestEpoch(home / BEST, data.metrics[0]))
    trainer = make_trainer(options, epochs, callbacks, loggers)
    if trainer.world_size > 1:  # Ctrl-C goes to all ranks and ends them; of SIGTERM, Lightning tells them all
        stop.signals = (signal.SIGTERM,)
    with stop, midway.positioned(data):
        try:
            with _interruptible():
                trainer.fit(module, datamodule=data, ckpt_path=usable_checkpoint(home, job), weights_only=True)
        except SystemExit as ended:
            stop.raise_if_received()
            if isinstance(ended, SIGTERMException):  # another rank was told
                raise Terminated from None
            raise
        except RuntimeError as error:
            if "DataLoader worker" in str(error):  # Ctrl-C goes to these processes, too
                stop.raise_if_received()
            raise
        stop.raise_if_received()
    if trainer.is_global_zero:
        folder.write_metrics(job, rows.rows)
    return rows.rows


@contextmanager
def _interruptible() -> Iterator[None]:
    """Give KeyboardInterrupt back, out of which Lightning makes an exit."""
    try:
        yield
    except SystemExit as ended:
        raise ended.__context__ if isinstance(ended.__context__, KeyboardInterrupt) else ended from None


def module_for(
    data: ImageData, distiller: Distiller, optimizer: OptimizerFactory, **options: Any
) -> DistillationModule:
    """A method under Lightning, judged by the metrics of the data; ``options`` are those of DistillationModule."""
    if isinstance(data, Glue):
        return TextDistillationModule(distiller, data.task, optimizer, **options)
    return DistillationModule(distiller, optimizer, **options)


def measured(module: DistillationModule, data: ImageData, part: str, options: TrainerOptions) -> Row:
    """The student on the part ``"val"`` or ``"test"``: ``test_accuracy`` and the like, one for each of the metrics."""
    trainer = make_trainer(options)
    evaluate = trainer.validate if part == "val" else trainer.test
    with _interruptible():
        results = evaluate(module, datamodule=data, verbose=False)
    return {f"{part}_{metric}": float(results[0][f"{part}/{metric}"]) for metric in data.metrics}
