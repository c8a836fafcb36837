"""What a terminal shows while a job trains: epoch, loss and its parts, accuracy, how long the run still takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from torch import Tensor

from blockkd.commands.forecast import Forecast
from blockkd.metering import Sums
from blockkd.runs import Job
from blockkd.training import DistillationModule

REFRESH = 1.0  # seconds between two looks at the losses
TOTAL, PREFIX = "train/loss", "train/"
BAR, GAP = 16, 2


class HostCopy:
    """Sums on their way from the device to the host, which waits for none of them.

    Args:
        sums: names, sums ``(V,)`` of weighted values, and the weight.
    """

    def __init__(self, sums: Sums) -> None:
        self._sums = [(names, _copied(total), weight) for names, total, weight in sums]
        self._event = None
        if any(total.is_cuda for _, total, _ in sums):
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def ready(self) -> bool:
        """Whether all have come."""
        return self._event is None or bool(self._event.query())

    def means(self) -> dict[str, float]:
        """The mean of each value; to be asked for when ``ready``."""
        found: dict[str, float] = {}
        for names, total, weight in self._sums:
            found |= {name: value / weight for name, value in zip(names, total.tolist(), strict=True)}
        return found


def _copied(total: Tensor) -> Tensor:
    if not total.is_cuda:
        return total.detach().clone()
    return torch.empty_like(total, device="cpu", pin_memory=True).copy_(total.detach(), non_blocking=True)


class Line:
    """One line, with as much of it as the width allows.

    Where there is little, the parts of the loss are summed up by kind (``task``, ``distill``, ...), then the bar goes,
    then the parts.

    Args:
        task: of a rich Progress.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        yield self.chosen(options.max_width)

    def chosen(self, width: int) -> Table:
        """The most telling form that is at most ``width`` columns wide."""
        task, fields = self.task, self.task.fields
        loss: Mapping[str, float] = fields.get("loss", {})
        before = [task.description]
        reached = fields.get("epoch") or f"{task.percentage:3.0f} %"
        after = [fields.get("watched", ""), _clock(fields.get("left", task.time_remaining))]
        said = loss_text(loss), grouped_text(loss), grouped_text(loss), total_text(loss)
        for has_bar, losses in zip((True, True, False, False), said, strict=True):
            texts = [text for text in (reached, losses, *after) if text]
            if _width(before, texts, has_bar) <= width:
                break
        bar = [ProgressBar(task.total, task.completed, width=BAR)] if has_bar else []
        grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        for _ in (*before, *bar, *texts):
            grid.add_column(no_wrap=True)
        grid.add_row(*before, *bar, *texts)
        return grid


def _width(before: Sequence[str], texts: Sequence[str], has_bar: bool) -> int:
    sizes = [cell_len(text) for text in (*before, *texts)] + [BAR] * has_bar
    return sum(sizes) + GAP * (len(sizes) - 1)


def total_text(loss: Mapping[str, float]) -> str:
    """``"loss 1.234"``."""
    return f"loss {loss[TOTAL]:.4g}" if TOTAL in loss else ""


def loss_text(loss: Mapping[str, float]) -> str:
    """``"loss 1.234: task/student 0.4, distill/stone_1 0.834"``, the parts as the metrics are called."""
    return _with_parts(loss, {name: value for name, value in loss.items() if name != TOTAL})


def grouped_text(loss: Mapping[str, float]) -> str:
    """``"loss 1.234: task 0.4, distill 0.834"``, the parts summed up by what stands before the stroke."""
    groups: dict[str, float] = {}
    for name, value in loss.items():
        if name != TOTAL:
            kind = name.removeprefix(PREFIX).partition("/")[0]
            groups[kind] = groups.get(kind, 0.0) + value
    return _with_parts(loss, groups)


def _with_parts(loss: Mapping[str, float], parts: Mapping[str, float]) -> str:
    said = ", ".join(f"{name.removeprefix(PREFIX)} {value:.3g}" for name, value in parts.items())
    return f"{total_text(loss)}: {said}" if said else total_text(loss)


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"


class _LineColumn(ProgressColumn):
    def render(self, task: Task) -> Line:
        return Line(task)


def progress_lines(console: Console) -> Progress:
    """The line of the job at hand; shows nothing where the console is no terminal."""
    disable = not console.is_terminal or console.quiet
    return Progress(_LineColumn(Column(ratio=1)), console=console, expand=True, disable=disable)


class ProgressLine(Callback):
    """One line on the terminal while a job trains; nothing is read or computed where there is none.

    The losses are the means of the epoch so far, of this process's share: in the end, what the epoch's row of metrics
    says. They are copied from the device at most once a second and shown when they have come, so that no step waits.

    Args:
        progress: where to draw.
        forecast: of the run.
        job: what trains.
        metrics: by which the network is judged; the first is shown.
        clock: seconds.
    """

    def __init__(
        self,
        progress: Progress,
        forecast: Forecast,
        job: Job,
        metrics: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress, self.forecast, self.job, self.metrics, self.clock = progress, forecast, job, metrics, clock
        self._task = None if progress.disable else progress.add_task(str(job), total=None)
        self._began, self._first, self._total, self._looked = 0.0, 0, 0, 0.0
        self._copy: HostCopy | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn how many steps there are."""
        del pl_module
        self._began, self._first = self.clock(), trainer.global_step
        self._total = int(trainer.estimated_stepping_batches)
        self._show(total=self._total, completed=trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which epoch it is; what was copied of the last one is late."""
        del pl_module
        self._copy = None
        self._show(epoch=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """One step further."""
        del args, kwargs
        if self._task is None:
            return
        self._show(completed=trainer.global_step, **self._left(trainer))
        if self._copy is not None and self._copy.ready:
            self._show(loss=self._losses(self._copy.means()))
            self._copy = None
        elif self._copy is None and self.clock() - self._looked >= REFRESH:
            assert isinstance(pl_module, DistillationModule), "the commands train nothing else"
            self._looked, self._copy = self.clock(), HostCopy(pl_module.train_means.sums())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show how good it is."""
        del pl_module
        if self._task is None:
            return
        metrics = trainer.callback_metrics
        part = "val" if f"val/{self.metrics[0]}" in metrics else "test"
        self._show(watched=f"{part} {float(metrics[f'{part}/{self.metrics[0]}']):.2%}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the losses of the whole epoch, which are read for its row anyway."""
        del pl_module
        if self._task is not None:
            self._show(loss=self._losses({name: float(value) for name, value in trainer.callback_metrics.items()}))

    def close(self) -> None:
        """Take the line away."""
        if self._task is not None:
            self.progress.remove_task(self._task)
            self._task = None

    def _show(self, **fields: Any) -> None:
        if self._task is not None:
            self.progress.update(self._task, **fields)

    def _left(self, trainer: Trainer) -> dict[str, float]:
        done = trainer.global_step - self._first
        if done < 1 or not trainer.max_epochs:
            return {}
        of_step = (self.clock() - self._began) / done
        left = (self._total - trainer.global_step) * of_step
        return {"left": self.forecast.left(self.job, left, of_step * self._total / trainer.max_epochs)}

    def _losses(self, values: Mapping[str, float]) -> dict[str, float]:
        """The loss, first, and its parts."""
        others = {TOTAL, *(f"{PREFIX}{metric}" for metric in self.metrics)}
        parts = {name: value for name, value in values.items() if name.startswith(PREFIX) and name not in others}
        return {name: values[name] for name in (TOTAL,) if name in values} | parts
