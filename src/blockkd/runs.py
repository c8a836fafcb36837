"""The folder of a run: what is in it, what is finished, and how it is written so that nothing is left half-done."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from blockkd.durable import DRAFT, write_durably

Row = dict[str, str | int | float]

RECIPE, METRICS, RESULTS, FIGURE = "recipe.yaml", "metrics.csv", "results.csv", "figure.png"
STUDENT, TEACHER, BEST = "student.safetensors", "teacher.safetensors", "best.safetensors"
STUDENT_FOLDER, TEACHER_FOLDER = "student.pretrained", "teacher.pretrained"  # of text classifiers, for transformers
DIVERGED = "diverged.safetensors"
CHECKPOINT, PREVIOUS, TEACHER_LOGITS = "last.ckpt", "previous.ckpt", "teacher_logits"
LOCK = ".lock"


class RunFolderError(ValueError):
    """The folder cannot be used for this run."""


@dataclass(frozen=True)
class Job:
    """One network to train: the teacher, or a student under one method and seed."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"


class RunFolder:
    """``runs/<recipe>``: the resolved recipe, metrics, results, figure and weights.

    Each job has its own folder ``<method>/seed_<seed>`` with its metrics, its checkpoint while it trains, and,
    written last, ``result.json``: a job that has one is finished. The tables of the run are put together from the
    jobs, so that a resumed run loses no row and doubles none.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run. Raises RunFolderError when there is none at ``path``."""
        folder = cls(path)
        if not (folder.path / RECIPE).is_file():
            raise RunFolderError(f"{folder.path} holds no run: there is no {RECIPE} in it")
        return folder

    def check_free(self, overwrite: bool) -> None:
        """Raise RunFolderError unless a new run can start here; writes nothing.

        A run that is there is in the way unless ``overwrite``; anything else that is there always is, since it is
        not ours to delete.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; choose another folder with --output")
        blocker = next(parent for parent in (self.path, *self.path.absolute().parents) if parent.exists())
        if not blocker.is_dir() or not os.access(blocker, os.W_OK):
            raise RunFolderError(f"cannot write to {self.path}: {blocker} is not a folder that can be written to")
        if not self.path.is_dir() or all(_is_left_behind(path) for path in self.path.iterdir()):
            return
        if not (self.path / RECIPE).is_file():
            raise RunFolderError(f"{self.path} is not empty and holds no run; choose another folder with --output")
        if not overwrite:
            raise RunFolderError(
                f"{self.path} already holds a run; continue it with --resume {self.path}, replace it with "
                "--overwrite, or choose another folder with --output"
            )

    def create(self, recipe: str, overwrite: bool = False) -> None:
        """Make the folder for a new run of ``recipe`` (YAML text); see ``check_free``."""
        self.check_free(overwrite)
        if self.path.is_dir() and overwrite:
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / LOCK):  # of two that start at once, one goes on
            self.check_free(overwrite=False)
            write_text(self.path / RECIPE, recipe)

    def job_folder(self, job: Job) -> Path:
        """Where the job keeps its files; made on first use."""
        if not re.fullmatch(r"[\w-][\w.-]*", job.method):
            raise RunFolderError(f"the method name {job.method!r} cannot name a folder; use letters, digits, - and _")
        folder = self.path / job.method / f"seed_{job.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def claim(self, job: Job, wait: bool = False) -> Iterator[bool]:
        """Keep the job for this process while it trains, so that several can share the folder.

        Yields whether the job is ours; False when another process has it. The system lets go of it when the process
        ends, however it ends.

        Args:
            job: the job.
            wait: wait until the other process is done with it.
        """
        lock = FileLock(self.job_folder(job) / LOCK, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def write_metrics(self, job: Job, rows: Sequence[Row], flush: bool = True) -> None:
        """Replace the job's metrics, one row per epoch; see ``write_durably`` for ``flush``."""
        write_csv(self.job_folder(job) / METRICS, rows, flush)

    def finish(self, job: Job, result: Row) -> None:
        """Mark the job as finished, with its result."""
        write_text(self.job_folder(job) / "result.json", json.dumps(result, indent=2) + "\n")

    def result(self, job: Job) -> Row | None:
        """The job's result, or None while it is unfinished."""
        path = self.path / job.method / f"seed_{job.seed}" / "result.json"
        if not path.is_file():
            return None
        try:
            result: Row = json.loads(path.read_text(encoding="utf-8"))
            complete = result["method"] == job.method and f"test_{result.get('metric', 'accuracy')}" in result
        except (ValueError, TypeError, KeyError):
            complete = False
        if not complete:
            raise RunFolderError(f"{path} is damaged; delete it, and the job is done again")
        return result

    def metrics(self, jobs: Iterable[Job]) -> list[Row]:
        """The rows of all jobs, in the order of ``jobs``."""
        rows: list[Row] = []
        for job in jobs:
            path = self.path / job.method / f"seed_{job.seed}" / METRICS
            if path.is_file():
                rows += read_csv(path)
        return rows

    def gather(self, jobs: Sequence[Job]) -> None:
        """Put the run's metrics and results together from its jobs."""
        write_csv(self.path / METRICS, self.metrics(jobs))
        write_csv(self.path / RESULTS, [result for job in jobs if (result := self.result(job))])


def write_text(path: Path, text: str, flush: bool = True) -> None:
    """Write a whole file or nothing; see ``write_durably``. Raises OSError, as on a full disk."""
    write_durably(path, text.encode("utf-8"), flush=flush)


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], flush: bool = True) -> None:
    """Write rows whose columns may differ; the columns keep the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue(), flush)


def read_csv(path: Path) -> list[Row]:
    """Read what ``write_csv`` wrote: numbers as numbers, empty cells left out."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _number(cell) for key, cell in row.items() if cell != ""} for row in csv.DictReader(file)]


def _is_left_behind(path: Path) -> bool:
    """Whether it is what a process leaves that was killed before it wrote the recipe."""
    return path.name.startswith(".") and (path.name == LOCK or path.name.endswith(DRAFT))


def _number(cell: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
