"""The teacher's logits on disk: every view of every image goes through the teacher once.

For all students, all methods and all seeds, and for several processes at a time. Methods that need of the teacher's own
forward pass nothing but its logits (plain KD with any logit distance; Block-KD, whose stones go through the teacher's
blocks all the same) read them from there.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from blockkd.data.images import FiniteViews
from blockkd.devices import has_room
from blockkd.runs import write_text

IDENTITY, LOGITS, FILLED = "identity.json", "logits.f16", "filled.u8"
DTYPE = torch.float16  # rounds a logit z by at most 2^-11 · |z|


class RecordError(ValueError):
    """What is recorded, or would be, cannot be used."""


class LogitTable:
    """Logits of every view of every image, as float16 in a file that processes share.

    A row counts as recorded when it is marked in a second file. Marks are set by ``flush`` alone, when the rows are on
    disk: a process that dies, and a machine that does, leave no row that is marked and wrong. Where two processes
    record the same row at the same time, either row stays; they differ by rounding at most.

    Args:
        folder: where the files are, or will be made.
        identity: all that the logits hang on, by name; short strings, such as hashes.
        shape: images, views of each, classes.

    Attributes:
        created: whether the files were made just now.

    Raises:
        RecordError: the folder holds the logits of another teacher, other images or another augmentation, or there is
            not enough space on its disk.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, str], shape: tuple[int, int, int]) -> None:
        self.folder, self.shape = Path(folder), shape
        wanted = dict(identity) | {"shape": f"{shape[0]} images × {shape[1]} views × {shape[2]} classes"}
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self.created = not (self.folder / IDENTITY).is_file()
            if self.created:
                self._create(wanted)
            self._check(wanted)
        rows = shape[0] * shape[1]
        self._files = (
            _mapped(self.folder / LOGITS, np.float16, (rows, shape[2])),
            _mapped(self.folder / FILLED, np.uint8, (rows,)),
        )
        self.logits, self._marks = (torch.from_numpy(file) for file in self._files)
        self._written = torch.zeros(rows, dtype=torch.bool)  # by this process since the last flush

    @property
    def nbytes(self) -> int:
        """Bytes on disk, whether filled or not."""
        return table_bytes(self.shape)

    def filled(self, rows: Int[Tensor, " B"] | slice = slice(None)) -> Bool[Tensor, " B"]:
        """Which of these rows, of all when left out, are recorded, ``(B,)``."""
        return (self._marks[rows] != 0) | self._written[rows]

    def write(self, rows: Int[Tensor, " B"], logits: Float[Tensor, "B K"]) -> None:
        """Record rows; other processes see them after the next ``flush``.

        Raises:
            RecordError: logits of another number of classes, in half precision, or too large for float16.
        """
        if logits.shape != (len(rows), self.shape[2]):
            raise RecordError(f"the teacher gave {tuple(logits.shape)}, expected {(len(rows), self.shape[2])}")
        if logits.dtype not in (torch.float32, torch.float64):
            raise RecordError(
                f"the teacher computes in {logits.dtype}, which is too coarse to be recorded for all: "
                "take precision 32-true or a mixed one, or record no teacher"
            )
        rounded = logits.to(DTYPE)
        if not rounded.isfinite().all():
            raise RecordError(
                f"the teacher gives logits of {float(logits.abs().max()):g}, and float16 ends at "
                f"{torch.finfo(DTYPE).max:g}: this teacher cannot be recorded"
            )
        self.logits[rows] = rounded
        self._written[rows] = True

    def flush(self) -> None:
        """Mark what was written as recorded, once it is on disk."""
        rows = self._written.nonzero()[:, 0]
        logits, marks = self._files
        if len(rows):
            logits.flush()
            self._marks[rows] = 1
            marks.flush()
            self._written.zero_()

    def _create(self, identity: Mapping[str, str]) -> None:
        needed, free = self.nbytes, shutil.disk_usage(self.folder).free
        said = f"{identity['shape']} take {needed / 1e9:.2f} GB"
        if needed > free:
            raise RecordError(
                f"the teacher's logits, {said}, and the disk of {self.folder} has {free / 1e9:.2f} GB left: record in "
                "a folder on another disk, or not at all"
            )
        for name, size in ((LOGITS, needed - self._rows), (FILLED, self._rows)):
            _reserve(self.folder / name, size)
        write_text(self.folder / IDENTITY, json.dumps(identity, indent=2) + "\n")

    def _check(self, wanted: Mapping[str, str]) -> None:
        there = json.loads((self.folder / IDENTITY).read_text(encoding="utf-8"))
        differing = [name for name in dict.fromkeys([*wanted, *there]) if wanted.get(name) != there.get(name)]
        if differing:
            raise RecordError(
                f"{self.folder} holds the recorded logits of something else, {_differences(there, wanted, differing)}: "
                "name another folder, or delete this one"
            )

    @property
    def _rows(self) -> int:
        return self.shape[0] * self.shape[1]


class RecordedTeacher:
    """Gives the teacher's logits of a batch; runs the teacher only on what is not recorded yet.

    On another device than the CPU the rows in use are kept there as well, if they take no more than half of what is
    free. As long as some are missing, each lookup waits for the device; afterwards none does.

    Args:
        table: what is recorded.
        resident: whether to keep rows on the images' device; None decides by device and memory.
    """

    def __init__(self, table: LogitTable, resident: bool | None = None) -> None:
        self.table, self.resident = table, resident
        self._copy: Tensor | None = None
        self._copied = torch.zeros(0, dtype=torch.bool)  # which rows are in the copy
        self._complete = False  # whether all are

    def lookup(
        self,
        indices: Int[Tensor, " B"],
        views: Int[Tensor, " B"],
        images: Tensor,
        teacher: Callable[[Tensor], Float[Tensor, "B K"]],
    ) -> Float[Tensor, "B K"]:
        """The teacher's logits of a batch, rounded to float16: by at most 2^-11 of each logit.

        Args:
            indices: which images these are, ``(B,)``.
            views: which views of them, ``(B,)``.
            images: the batch, ``(B, ...)``.
            teacher: images → logits; run without autocast on those that are not recorded yet.

        Returns:
            ``(B, K)``, of the images' type and on their device.

        Raises:
            RecordError: there are no such images or views, or the teacher's logits cannot be recorded.
        """
        if self._complete and self._copy is not None:
            return self._copy[indices * self.table.shape[1] + views].to(images.dtype)
        rows = self._rows(indices, views)
        missing = ~self.table.filled(rows)
        if missing.any():
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                fresh = teacher(images[missing.to(images.device)])
            self.table.write(rows[missing], fresh.detach().cpu())
        return self._read(rows, images.device).to(images.dtype)

    def flush(self) -> None:
        """Put on disk what was recorded since the last time, for other processes and later runs."""
        self.table.flush()
        self._complete = self._copy is not None and bool(self._copied.all())

    def _rows(self, indices: Tensor, views: Tensor) -> Int[Tensor, " B"]:
        which = torch.stack((indices, views)).cpu()
        bounds = torch.tensor(self.table.shape[:2])[:, None]
        if bool(((which < 0) | (which >= bounds)).any()):
            raise RecordError(
                f"the batch holds images {_span(which[0])} and views {_span(which[1])}; recorded are "
                f"{self.table.shape[0]} images in {self.table.shape[1]} views each"
            )
        return which[0] * self.table.shape[1] + which[1]

    def _read(self, rows: Int[Tensor, " B"], device: torch.device) -> Tensor:
        if self.resident is None:
            self.resident = device.type != "cpu" and has_room(self.table.nbytes, device)
        if not self.resident:
            return self.table.logits[rows].to(device)
        if self._copy is None:
            self._copied = self.table.filled()
            self._copy = self.table.logits.to(device, copy=True)
            self._complete = bool(self._copied.all())
        absent = rows[~self._copied[rows]]
        self._copy[absent.to(device)] = self.table.logits[absent].to(device)
        self._copied[absent] = True
        return self._copy[rows.to(device)]


def teacher_identity(teacher: nn.Module) -> str:
    """A hash of a network's weights, buffers and structure."""
    digest = hashlib.sha256(repr(teacher).encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def record_teacher(folder: str | Path, teacher: nn.Module, images: FiniteViews, num_classes: int) -> RecordedTeacher:
    """Open the record of this teacher on these training images, or begin it.

    Args:
        folder: where it is, or will be.
        teacher: whose logits they are, as it was trained: before its batch norm is folded.
        images: the training images, augmented as they will be in training.
        num_classes: K.

    Raises:
        RecordError: the folder holds another record, or there is not enough space on its disk.
        ValueError: the images cannot be told apart from others.
    """
    identity = {"teacher": teacher_identity(teacher)} | images.identity()
    return RecordedTeacher(LogitTable(folder, identity, (len(images), images.n_views, num_classes)))


def table_bytes(shape: tuple[int, int, int]) -> int:
    """What a table takes on disk: two bytes for each logit and one for each row's mark."""
    images, views, classes = shape
    return images * views * (2 * classes + 1)


def _mapped(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != size:
        raise RecordError(f"{path} is missing or not of {size} bytes: delete the folder, and it will be recorded anew")
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _reserve(path: Path, size: int) -> None:
    """An empty file with its place on disk: what is mapped into memory cannot fail politely when the disk is full."""
    with path.open("wb") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def _span(numbers: Tensor) -> str:
    return f"{int(numbers.min())} … {int(numbers.max())}"


def _differences(there: Mapping[str, str], wanted: Mapping[str, str], names: list[str]) -> str:
    def short(value: str | None) -> str:
        return value[:12] if value is not None and len(value) == 64 else str(value)

    return "; ".join(f"{name}: recorded {short(there.get(name))}, now {short(wanted.get(name))}" for name in names)
