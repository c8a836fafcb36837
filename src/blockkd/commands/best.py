"""Keeps the student of the epoch that was best on the validation part."""

import math
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from blockkd.export import save_student
from blockkd.scores import ACCURACY


class BestEpoch(Callback):
    """Writes the student whenever it is better on the validation part than ever before; the first of equals stays.

    Its state is part of the checkpoint, so that a resumed job knows what was best.

    Args:
        path: file of the best student.
        metric: by which it is judged; more is better.
    """

    def __init__(self, path: Path, metric: str = ACCURACY) -> None:
        self.path, self.metric = path, metric
        self.epoch, self.best = -1, -math.inf

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far."""
        return {"epoch": self.epoch, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was best."""
        self.epoch, self.best = state_dict["epoch"], state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the student if it is the best."""
        value = float(trainer.callback_metrics[f"val/{self.metric}"])
        if value > self.best or self.epoch < 0:  # a correlation of constants is no number
            self.epoch, self.best = trainer.current_epoch, value
            if trainer.is_global_zero:
                save_student(pl_module, self.path)
