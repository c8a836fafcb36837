"""A Distiller under Lightning, which brings loop, devices, precision, checkpoints and loggers."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Real
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from blockkd.calling import logits_of
from blockkd.devices import Compile, best_compile, compiled, fused, is_gated
from blockkd.distiller import Distiller, Losses
from blockkd.divergence import DivergedError, FiniteWatch, Step, diagnose, first_diagnosis, randomness
from blockkd.metering import EpochMeans
from blockkd.objectives import task_loss
from blockkd.ranks import across_ranks, of_first_rank
from blockkd.recording import RecordedTeacher
from blockkd.schedules import LinearWarmup

OptimizerFactory = Callable[[list[Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
Batch = tuple[Any, Tensor] | tuple[Any, Tensor, Tensor] | tuple[Any, Tensor, Tensor, Tensor]


class DistillationModule(LightningModule):
    """Trains the student of a Distiller; the teacher is in no checkpoint.

    Logs, per epoch, ``train/loss``, each term as ``train/<term>``, ``train/accuracy``, ``val/loss`` (cross-entropy of
    the student), ``val/accuracy`` (both as ``test/...`` where the test part is watched) and, when tested,
    ``test/accuracy``.

    Args:
        distiller: the method, with teacher and student.
        optimizer: parameters → optimizer, for example ``functools.partial(torch.optim.SGD, lr=0.1)``.
        scheduler: optimizer → learning rate schedule, stepped after each epoch, ``LinearWarmup`` after each step; None
            anneals the learning rate to 0 along a cosine over the trainer's ``max_epochs``.
        watched: the part that the validation loader gives, which names what is logged of it. Where nothing is held
            out for validation, the test part can be watched; it chooses nothing.
        channels_last: keep images and networks in memory channel by channel of each pixel, which convolutions are
            often faster on; results change by rounding only.
        recorded: takes the place of the teacher's own forward pass; batches must then say which images and which
            views of them they hold.
        compile: ``"default"`` compiles the method's forward and backward pass, each into one graph, and
            ``"reduce-overhead"`` also records them as CUDA graphs; results change by rounding only, and batches are
            best all of one size. ``"auto"`` does what ``blockkd.devices.best_compile`` says.

    Raises:
        ValueError: there is a record, but the method needs more of the teacher than its logits.
    """

    def __init__(
        self,
        distiller: Distiller,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        watched: Literal["val", "test"] = "val",
        channels_last: bool = False,
        recorded: RecordedTeacher | None = None,
        compile: Compile = "off",
    ) -> None:
        super().__init__()
        if recorded is not None and not distiller.takes_recorded:
            raise ValueError(
                f"{type(distiller).__name__} needs more of its teacher than logits, so they cannot be recorded for it; "
                "leave out recorded"
            )
        self.distiller = distiller
        self.watched, self.channels_last, self.recorded = watched, channels_last, recorded
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.train_means, self.val_means = EpochMeans(), EpochMeans()
        # Without its checks, which wait for the device; the losses check logits and labels.
        self.val_accuracy = MulticlassAccuracy(average="micro", validate_args=False)
        self.test_accuracy = MulticlassAccuracy(average="micro", validate_args=False)
        self.compile_mode = compile
        self._compute: Callable[..., Losses] = distiller
        self._watch = FiniteWatch(torch.device("cpu"), gated=False)
        self._step: Step | None = None

    def forward(self, inputs: Any) -> Float[Tensor, "B K"]:
        """The student's logits ``(B, K)``."""
        return logits_of(self.distiller.student, inputs)

    def setup(self, stage: str) -> None:
        """Tell Lightning's DDP what it must know, where nobody has told it otherwise."""
        strategy = self.trainer.strategy
        if stage == "fit" and isinstance(strategy, DDPStrategy):
            options = strategy._ddp_kwargs  # there is no public way to them once the Trainer is made
            options.setdefault("find_unused_parameters", self.distiller.leaves_unused)
            # Batch norm and memories are equal on all ranks by themselves. Sent before each forward pass, buffers would
            # also let ranks wait forever that have fewer batches to evaluate than others.
            known = inspect.signature(DistributedDataParallel).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            if not {"forward_sync_buffers", "broadcast_buffers"} & options.keys():
                options[name] = False

    def on_fit_start(self) -> None:
        """Put the student into training mode (Lightning leaves it as it came) and look at the method's schedule."""
        self.distiller.train()
        if self.channels_last:
            self.distiller.to(memory_format=torch.channels_last)
        if self.trainer.max_epochs is not None and self.trainer.max_epochs >= 0:
            self.distiller.check_schedule(self.trainer.max_epochs)

    def on_train_start(self) -> None:
        """Compile, and begin to watch over what is computed; all processes begin with the same buffers."""
        self._compute = self._compiled()  # not before: to count the steps is to load the data, from a resumed epoch on
        with torch.no_grad(), across_ranks():
            for buffer in self.distiller.buffers():
                buffer.copy_(of_first_rank(buffer))
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LinearWarmup):
                config.scheduler.steps = int(self.trainer.estimated_stepping_batches)
        optimizer = self._optimizer
        gated = optimizer is not None and is_gated(optimizer) and self._scaler is None
        self._watch = FiniteWatch(self.device, gated)
        if gated:
            optimizer.found_inf = self._watch.flag  # type: ignore[union-attr]

    def on_train_epoch_start(self) -> None:
        """Tell the method which epoch begins."""
        self.distiller.set_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """One batch, inputs and labels and, if there are, the samples' indices and views → the loss to minimise.

        Raises:
            ValueError: there is a record, but the batch does not say which views it holds.
            DivergedError: a loss term is NaN or infinite.
        """
        del batch_idx
        inputs, targets, *numbers = self._laid_out(batch)
        context = self._context(inputs, numbers)
        before = randomness(self.device)
        losses = self._compute(inputs, targets, **context)
        row = torch.stack([value.detach().float() for value in (losses.total, *losses.terms.values())])
        # Slices of the row, as what a CUDA graph gives is gone in the next step.
        terms = dict(zip(losses.terms, row[1:], strict=True))
        self._step = Step(self.current_epoch, self.global_step, inputs, targets, context, before, terms)
        self._watch.look(row)
        if not self._watch.lag and self.trainer.world_size == 1:
            self._stop_at(self._watch.first_bad(self._step))
        self.train_means.add(("train/loss", *(f"train/{name}" for name in terms)), row, len(targets))
        self.measure("train", losses.logits, targets)
        if self.trainer.is_last_batch:
            self.log_epoch()
        total: Tensor = losses.total
        return total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Look at the gradients before they are used.

        Raises:
            DivergedError: one of them, or a loss before it, is NaN or infinite.
        """
        assert self._step is not None
        if self._scaler is None:  # gradients that were scaled up may overflow; the scaler skips their step
            self._watch.look_at_gradients(self._learners)
        if self.trainer.world_size > 1:  # so that all processes stop, and none waits for another
            self._watch.flag = self.trainer.strategy.reduce(self._watch.flag, reduce_op="max")
        if is_gated(optimizer) and self._scaler is None:
            optimizer.found_inf = self._watch.flag  # type: ignore[attr-defined]
        self._stop_at(self._watch.first_bad(self._step))

    def on_train_epoch_end(self) -> None:
        """Put on disk what was recorded; Lightning writes the epoch's checkpoint after that."""
        self._stop_at(self._watch.drain())
        self.log_epoch()  # where the epoch was cut short
        if self.recorded is not None:
            self.recorded.flush()

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Log the student's cross-entropy and accuracy."""
        del batch_idx
        inputs, targets = self._laid_out(batch)
        logits = self(inputs)
        loss = task_loss(logits, targets).float()
        self.val_means.add((f"{self.watched}/loss",), loss[None], len(targets))
        self.measure("val", logits, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss; Lightning's own means are wrong where processes have shares of different sizes."""
        self._log_means(self.val_means)

    def test_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Log the student's accuracy."""
        del batch_idx
        inputs, targets = self._laid_out(batch)
        self.measure("test", self(inputs), targets)

    def measure(
        self, part: Literal["train", "val", "test"], logits: Float[Tensor, "B K"], targets: Real[Tensor, " B"]
    ) -> None:
        """Log what a batch adds to a part's metrics; here the accuracy.

        Args:
            part: the loader that the batch is from; what the validation loader gives is named as ``watched`` says.
            logits: the student's, ``(B, K)``.
            targets: labels ``(B,)``.
        """
        if part == "train":
            hits = (logits.argmax(dim=1) == targets).float().mean()
            self.train_means.add(("train/accuracy",), hits[None], len(targets))
            return
        metric: MulticlassAccuracy = getattr(self, f"{part}_accuracy")
        metric(logits, targets)
        name = self.watched if part == "val" else part
        self.log(f"{name}/accuracy", metric, on_step=False, on_epoch=True, batch_size=len(targets))

    def log_epoch(self) -> None:
        """Log what was summed up over the training batches of an epoch, and begin anew; nothing where there is none."""
        self._log_means(self.train_means)

    def configure_optimizers(self) -> Any:
        """Optimizer over student and the method's own modules, schedule per epoch, or per step for ``LinearWarmup``."""
        optimizer = self.make_optimizer(self._learners)
        if self.trainer.gradient_clip_val is None:  # Lightning refuses to clip for fused optimizers
            optimizer = fused(optimizer)
        scheduler = self._scheduler(optimizer)
        interval = "step" if isinstance(scheduler, LinearWarmup) else "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the means so far, which are empty between two epochs; nothing that is not finite is kept."""
        self._stop_at(self._watch.drain())
        checkpoint["train_means"] = self.train_means.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the means."""
        self.train_means.load_state_dict(checkpoint["train_means"])

    @property
    def _learners(self) -> list[Parameter]:
        return [parameter for parameter in self.distiller.parameters() if parameter.requires_grad]

    @property
    def _optimizer(self) -> Optimizer | None:
        optimizers = self.trainer.optimizers
        return optimizers[0] if optimizers else None

    @property
    def _scaler(self) -> Any:
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _compiled(self) -> Callable[..., Losses]:
        chosen = self.compile_mode
        if chosen == "auto":
            alone = self.trainer.world_size == 1
            mode = best_compile(self.device, int(self.trainer.estimated_stepping_batches)) if alone else "off"
            return compiled(self.distiller, mode, or_not=True)
        if chosen != "off" and self.trainer.world_size > 1:
            warnings.warn("compile has no effect: several processes train together, uncompiled", stacklevel=2)
            return self.distiller
        if chosen != "off" and not self.distiller.compiles:
            name = type(self.distiller).__name__
            warnings.warn(f"compile has no effect on {name}, whose step is not one graph", stacklevel=2)
        return compiled(self.distiller, chosen)

    def _log_means(self, sums: EpochMeans) -> None:
        means = sums.means(lambda values: self.trainer.strategy.reduce(values, reduce_op="sum"))
        sums.clear()
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)  # the same on all ranks

    def _stop_at(self, step: Step | None) -> None:
        if step is None:
            return
        found = first_diagnosis(diagnose(self.distiller, step))
        said = found or "taking the step again gives finite numbers"
        raise DivergedError(
            f"the loss is no longer finite in epoch {step.epoch}, step {step.number}: {said}; "
            "the optimizer step was not taken; a lower learning rate is the usual mend",
            step,
        )

    def _context(self, inputs: Any, numbers: Sequence[Tensor]) -> dict[str, Tensor]:
        context = {"indices": numbers[0]} if numbers and self.distiller.needs_indices else {}
        if self.recorded is not None:
            numbers = self._numbers(numbers)
            if len(numbers) < 2:
                raise ValueError(
                    "the teacher is recorded, but the batch does not say which images and which views of them it "
                    "holds: expected (inputs, labels, indices, views)"
                )
            indices, views, *_ = numbers
            context["recorded"] = self.recorded.lookup(indices, views, inputs, self.distiller.teacher_logits)
        return context

    def _numbers(self, numbers: Sequence[Tensor]) -> Sequence[Tensor]:
        """Indices and views; the only view there is need not be said."""
        only = self.recorded is not None and self.recorded.table.shape[1] == 1 and len(numbers) == 1
        return [numbers[0], torch.zeros_like(numbers[0])] if only else numbers

    def _laid_out(self, batch: Batch) -> tuple[Any, ...]:
        inputs, *rest = batch
        if self.channels_last and isinstance(inputs, Tensor) and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, *rest

    def _scheduler(self, optimizer: Optimizer) -> LRScheduler:
        if self.make_scheduler is not None:
            return self.make_scheduler(optimizer)
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 0:
            raise ValueError("the cosine schedule needs max_epochs of the Trainer; set it, or give a scheduler")
        return CosineAnnealingLR(optimizer, T_max=max(epochs, 1))
