"""Keeps the student of the epoch that was best on the validation part."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from blockkd.export import save_student


class BestEpoch(Callback):
    """Writes the student whenever its validation accuracy is higher than ever before; the first of equals stays.

    Its state is part of the checkpoint, so that a resumed job knows what was best.

    Args:
        path: file of the best student.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch, self.accuracy = -1, -1.0

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far."""
        return {"epoch": self.epoch, "accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was best."""
        self.epoch, self.accuracy = state_dict["epoch"], state_dict["accuracy"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the student if it is the best."""
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        if accuracy > self.accuracy:
            self.epoch, self.accuracy = trainer.current_epoch, accuracy
            if trainer.is_global_zero:
                save_student(pl_module, self.path)
