"""Watches the stepping stones while a student trains: where along the depth knowledge gets lost."""

from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from blockkd.block_kd import BlockKD
from blockkd.metering import EpochMeans


class StoneWatch(Callback):
    """Logs each stone's accuracy, and how often it agrees with teacher and student, whenever there is a validation.

    The shares of images, 0 … 1, are ``val/stone_i/accuracy``, ``val/stone_i/agrees_teacher``,
    ``val/stone_i/agrees_student``, ``val/student/accuracy``, ``val/student/agrees_teacher`` and
    ``val/teacher/accuracy``; as ``test/...`` where the test part is watched. It costs a forward pass of student, stones
    and teacher over the images that are validated; the training itself stays the same to the bit. Methods without
    stones are left alone.
    """

    def __init__(self) -> None:
        self.means = EpochMeans()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Count this batch."""
        del trainer, outputs, batch_idx, rest
        distiller = pl_module.distiller
        if not isinstance(distiller, BlockKD) or not distiller.stones:
            return
        inputs, targets, *_ = batch
        if targets.is_floating_point():  # a regression has no classes that networks could agree on
            return
        shares = agreement(distiller.all_logits(inputs), targets)
        names = tuple(f"{pl_module.watched}/{name}" for name in shares)
        self.means.add(names, torch.stack(list(shares.values())), len(targets))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the shares of all images."""
        means = self.means.means(lambda values: trainer.strategy.reduce(values, reduce_op="sum"))
        self.means.clear()
        pl_module.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)  # the same on all ranks


def agreement(logits: dict[str, Float[Tensor, "B K"]], targets: Int[Tensor, " B"]) -> dict[str, Float[Tensor, ""]]:
    """Shares of a batch in which stones are right, and say what teacher and student say.

    Args:
        logits: of ``student``, ``teacher`` and each ``stone_i``, ``(B, K)``.
        targets: classes ``(B,)``.
    """
    said = {name: values.argmax(dim=1) for name, values in logits.items()}
    student, teacher = said.pop("student"), said.pop("teacher")
    shares = {
        "teacher/accuracy": teacher == targets,
        "student/accuracy": student == targets,  # which not every task is judged by
        "student/agrees_teacher": student == teacher,
    }
    for name, classes in said.items():
        shares |= {
            f"{name}/accuracy": classes == targets,
            f"{name}/agrees_teacher": classes == teacher,
            f"{name}/agrees_student": classes == student,
        }
    return {name: hits.float().mean() for name, hits in shares.items()}
