"""A Distiller under Lightning, which brings loop, devices, precision, checkpoints and loggers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Real
from lightning import LightningModule
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from blockkd.calling import logits_of
from blockkd.distiller import Distiller
from blockkd.objectives import task_loss
from blockkd.recording import RecordedTeacher

OptimizerFactory = Callable[[list[Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
Batch = tuple[Any, Tensor] | tuple[Any, Tensor, Tensor] | tuple[Any, Tensor, Tensor, Tensor]


class DivergedError(ArithmeticError):
    """A loss term became NaN or infinite; raised before the optimizer step."""


class DistillationModule(LightningModule):
    """Trains the student of a Distiller; the teacher is in no checkpoint.

    Logs, per epoch, ``train/loss``, each term as ``train/<term>``, ``train/accuracy``, ``val/loss`` (cross-entropy of
    the student), ``val/accuracy`` (both as ``test/...`` where the test part is watched) and, when tested,
    ``test/accuracy``.

    Args:
        distiller: the method, with teacher and student.
        optimizer: parameters → optimizer, for example ``functools.partial(torch.optim.SGD, lr=0.1)``.
        scheduler: optimizer → learning rate schedule, stepped after each epoch; None anneals the learning rate
            to 0 along a cosine over the trainer's ``max_epochs``.
        watched: the part that the validation loader gives, which names what is logged of it. Where nothing is held
            out for validation, the test part can be watched; it chooses nothing.
        channels_last: keep images and networks in memory channel by channel of each pixel, which convolutions are
            often faster on; results change by rounding only.
        recorded: takes the place of the teacher's own forward pass; batches must then say which images and which
            views of them they hold.

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
        self.train_accuracy = MulticlassAccuracy(average="micro")
        self.val_accuracy = MulticlassAccuracy(average="micro")
        self.test_accuracy = MulticlassAccuracy(average="micro")

    def forward(self, inputs: Any) -> Float[Tensor, "B K"]:
        """The student's logits ``(B, K)``."""
        return logits_of(self.distiller.student, inputs)

    def on_fit_start(self) -> None:
        """Put the student into training mode (Lightning leaves it as it came) and look at the method's schedule."""
        self.distiller.train()
        if self.channels_last:
            self.distiller.to(memory_format=torch.channels_last)
        if self.trainer.max_epochs is not None and self.trainer.max_epochs >= 0:
            self.distiller.check_schedule(self.trainer.max_epochs)

    def on_train_epoch_start(self) -> None:
        """Tell the method which epoch begins."""
        self.distiller.set_epoch(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        """Put on disk what was recorded; Lightning writes the epoch's checkpoint after that."""
        if self.recorded is not None:
            self.recorded.flush()

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """One batch, inputs and labels and, if there are, the samples' indices and views → the loss to minimise.

        Raises:
            ValueError: there is a record, but the batch does not say which views it holds.
            DivergedError: a loss term is NaN or infinite.
        """
        del batch_idx
        inputs, targets, *numbers = self._laid_out(batch)
        losses = self.distiller(inputs, targets, **self._context(inputs, numbers))
        self._check_finite(losses.terms)
        size = len(targets)
        self.log("train/loss", losses.total, on_step=False, on_epoch=True, batch_size=size)
        for name, term in losses.terms.items():
            self.log(f"train/{name}", term, on_step=False, on_epoch=True, batch_size=size)
        self.measure("train", losses.logits, targets)
        total: Tensor = losses.total
        return total

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Log the student's cross-entropy and accuracy."""
        del batch_idx
        inputs, targets = self._laid_out(batch)
        logits = self(inputs)
        self.log(f"{self.watched}/loss", task_loss(logits, targets), on_epoch=True, batch_size=len(targets))
        self.measure("val", logits, targets)

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
        metric: MulticlassAccuracy = getattr(self, f"{part}_accuracy")
        metric(logits, targets)
        name = self.watched if part == "val" else part
        self.log(f"{name}/accuracy", metric, on_step=False, on_epoch=True, batch_size=len(targets))

    def configure_optimizers(self) -> Any:
        """Optimizer over student and the method's own modules, schedule per epoch."""
        learners = [parameter for parameter in self.distiller.parameters() if parameter.requires_grad]
        optimizer = self.make_optimizer(learners)
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}

    def _context(self, inputs: Any, numbers: Sequence[Tensor]) -> dict[str, Tensor]:
        context = {"indices": numbers[0]} if numbers and self.distiller.needs_indices else {}
        if self.recorded is not None:
            if len(numbers) < 2:
                raise ValueError(
                    "the teacher is recorded, but the batch does not say which images and which views of them it "
                    "holds: expected (inputs, labels, indices, views)"
                )
            indices, views, *_ = numbers
            context["recorded"] = self.recorded.lookup(indices, views, inputs, self.distiller.teacher_logits)
        return context

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

    def _check_finite(self, terms: Mapping[str, Tensor]) -> None:
        values = torch.stack([term.detach() for term in terms.values()])
        if torch.isfinite(values).all():  # the only wait for the device in a step
            return
        bad = {name: value for name, value in zip(terms, values.tolist(), strict=True) if value - value != 0}
        listed = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise DivergedError(
            f"the loss is no longer finite in epoch {self.current_epoch}, step {self.global_step}: {listed}; "
            "the optimizer step was not taken; a lower learning rate is the usual mend"
        )
