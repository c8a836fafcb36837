"""Training in slices of time: how much is left, and a stop between two epochs before it runs out."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Deadline:
    """The end of a slice of time.

    Args:
        minutes: from now; None is never.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def minutes_left(self) -> float | None:
        """How much time is left, 0 when none is; None without an end."""
        return None if self.end is None else max(self.end - time.monotonic(), 0.0) / 60

    def allows(self, seconds: float = 0.0) -> bool:
        """Whether something that takes so long would still end in time."""
        return self.end is None or time.monotonic() + seconds < self.end


class StopInTime(Callback):
    """Ends the training after an epoch when another one would not end in time.

    A slice does at least one epoch, however short it is, so that slices come to an end.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """How long the epoch has taken so far."""
        return {"seconds": time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with an epoch."""
        self._started = time.monotonic() - state_dict["seconds"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        del trainer, pl_module
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop unless an epoch like this one fits in."""
        del pl_module
        late = not self.deadline.allows(time.monotonic() - self._started)
        if trainer.strategy.reduce_boolean_decision(late, all=False):  # all processes stop, or none
            trainer.should_stop = True
