"""A file of logits that processes share: a row for every view of every sample, marked when it is on disk."""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Bool, Float, Int
from torch import Tensor

from blockkd.runs import write_text

IDENTITY, LOGITS, CLASSES, FILLED = "identity.json", "logits.f16", "classes.i32", "filled.u8"
EXACT_LOGITS = "logits.f32"
DTYPE = torch.float16  # rounds a logit z by at most 2^-11 · |z|


class RecordError(ValueError):
    """What is recorded, or would be, cannot be used."""


class LogitTable:
    """Logits of every view of every sample, as numbers in a file that processes share.

    A row counts as recorded when it is marked in a second file. Marks are set by ``flush`` alone, when the rows are on
    disk: a process that dies, and a machine that does, leave no row that is marked and wrong. Where two processes
    record the same row at the same time, either row stays; they differ by rounding at most.

    Args:
        folder: where the files are, or will be made.
        identity: all that the logits hang on, by name; short strings, such as hashes.
        shape: images, views of each, classes.
        top: how many of the largest logits of a row are kept, and beside them one number for all others: the logarithm
            of the sum of their exponentials, so that the softmax of those kept stays what it is, and the others share
            what remains in equal parts. None keeps all.
        dtype: of the numbers on disk: float16, or float32 for tables that are small all the same.

    Attributes:
        created: whether the files were made just now.

    Raises:
        RecordError: the folder holds the logits of another teacher, other images or another augmentation, or there is
            not enough space on its disk.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, str],
        shape: tuple[int, int, int],
        top: int | None = None,
        dtype: torch.dtype = DTYPE,
    ) -> None:
        if top is not None and not 1 <= top < shape[2]:
            raise RecordError(f"the top {top} of {shape[2]} classes cannot be kept: expected 1 … {shape[2] - 1}")
        self.folder, self.shape, self.top, self.dtype = Path(folder), shape, top, dtype
        kept = ("" if top is None else f", the top {top} of them") + (", in float32" if dtype != DTYPE else "")
        wanted = dict(identity) | {"shape": f"{shape[0]} images × {shape[1]} views × {shape[2]} classes{kept}"}
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self.created = not (self.folder / IDENTITY).is_file()
            if self.created:
                self._create(wanted)
            self._check(wanted)
        rows = shape[0] * shape[1]
        columns = shape[2] if top is None else top + 1
        kind = np.float16 if dtype == DTYPE else np.float32
        self._files: list[np.memmap[Any, Any]] = [_mapped(self.folder / self._logits_file, kind, (rows, columns))]
        if top is not None:
            self._files.append(_mapped(self.folder / CLASSES, np.int32, (rows, top)))
        self._marks_file = _mapped(self.folder / FILLED, np.uint8, (rows,))
        self.columns = tuple(torch.from_numpy(file) for file in self._files)
        self._marks = torch.from_numpy(self._marks_file)
        self._written = torch.zeros(rows, dtype=torch.bool)  # by this process since the last flush

    @property
    def nbytes(self) -> int:
        """Bytes on disk, whether filled or not."""
        return table_bytes(self.shape, self.top, self.dtype)

    def filled(self, rows: Int[Tensor, " B"] | slice = slice(None)) -> Bool[Tensor, " B"]:
        """Which of these rows, of all when left out, are recorded, ``(B,)``."""
        return (self._marks[rows] != 0) | self._written[rows]

    def write(self, rows: Int[Tensor, " B"], logits: Float[Tensor, "B K"]) -> None:
        """Record rows; other processes see them after the next ``flush``.

        Raises:
            RecordError: logits of another number of classes, in half precision, or too large for the numbers on disk.
        """
        if logits.shape != (len(rows), self.shape[2]):
            raise RecordError(f"the teacher gave {tuple(logits.shape)}, expected {(len(rows), self.shape[2])}")
        if logits.dtype not in (torch.float32, torch.float64):
            raise RecordError(
                f"the teacher computes in {logits.dtype}, which is too coarse to be recorded for all: "
                "take precision 32-true or a mixed one, or record no teacher"
            )
        packed = pack(logits, self.top, self.dtype)
        if not packed[0].isfinite().all():
            kind = str(self.dtype).removeprefix("torch.")
            raise RecordError(
                f"the teacher gives logits of {float(logits.abs().max()):g}, and {kind} ends at "
                f"{torch.finfo(self.dtype).max:g}: this teacher cannot be recorded"
            )
        for column, values in zip(self.columns, packed, strict=True):
            column[rows] = values
        self._written[rows] = True

    def read(self, columns: Sequence[Tensor]) -> Float[Tensor, "B K"]:
        """The logits in float32 that rows of the table's columns stand for."""
        return unpack(columns, self.shape[2])

    def flush(self) -> None:
        """Mark what was written as recorded, once it is on disk."""
        rows = self._written.nonzero()[:, 0]
        if len(rows):
            for file in self._files:
                file.flush()
            self._marks[rows] = 1
            self._marks_file.flush()
            self._written.zero_()

    def _create(self, identity: Mapping[str, str]) -> None:
        needed, free = self.nbytes, shutil.disk_usage(self.folder).free
        said = f"{identity['shape']} take {needed / 1e9:.2f} GB"
        if needed > free:
            raise RecordError(
                f"the teacher's logits, {said}, and the disk of {self.folder} has {free / 1e9:.2f} GB left: record in "
                "a folder on another disk, or not at all"
            )
        for name, size in self._sizes().items():
            _reserve(self.folder / name, size)
        write_text(self.folder / IDENTITY, json.dumps(identity, indent=2) + "\n")

    def _check(self, wanted: Mapping[str, str]) -> None:
        there = _identity_in(self.folder / IDENTITY)
        differing = [name for name in dict.fromkeys([*wanted, *there]) if wanted.get(name) != there.get(name)]
        if differing:
            raise RecordError(
                f"{self.folder} holds the recorded logits of something else, {_differences(there, wanted, differing)}: "
                "name another folder, or delete this one"
            )

    @property
    def _logits_file(self) -> str:
        return LOGITS if self.dtype == DTYPE else EXACT_LOGITS

    def _sizes(self) -> dict[str, int]:
        rows = self.shape[0] * self.shape[1]
        size = self.dtype.itemsize
        if self.top is None:
            return {self._logits_file: rows * self.shape[2] * size, FILLED: rows}
        return {self._logits_file: rows * (self.top + 1) * size, CLASSES: rows * self.top * 4, FILLED: rows}


def pack(logits: Float[Tensor, "B K"], top: int | None, dtype: torch.dtype = DTYPE) -> tuple[Tensor, ...]:
    """Logits → what is kept of them: all, or the largest and the rest's log-sum-exp, and their classes."""
    if top is None:
        return (logits.to(dtype),)
    largest, classes = logits.topk(top, dim=1)
    rest = logits.scatter(1, classes, -math.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([largest, rest], dim=1).to(dtype), classes.to(torch.int32)


def unpack(kept: Sequence[Tensor], classes: int) -> Float[Tensor, "B K"]:
    """What was kept → logits in float32; classes that were not kept share what was summed up of them."""
    if len(kept) == 1:
        return kept[0].float()
    values, which = kept[0].float(), kept[1].long()
    top = which.shape[1]
    rest = (values[:, top:] - math.log(classes - top)).expand(-1, classes)
    return rest.scatter(1, which, values[:, :top])


def table_bytes(shape: tuple[int, int, int], top: int | None = None, dtype: torch.dtype = DTYPE) -> int:
    """What a table takes on disk: two bytes a number in float16, four for a class of the top, one for a row's mark."""
    images, views, classes = shape
    size = dtype.itemsize
    return images * views * (size * classes + 1 if top is None else size * (top + 1) + 4 * top + 1)


def _identity_in(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested without end
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise RecordError(f"{path} does not say what is recorded: delete the folder, and it will be recorded anew")
    return found


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


def _differences(there: Mapping[str, str], wanted: Mapping[str, str], names: list[str]) -> str:
    def short(value: str | None) -> str:
        return value[:12] if value is not None and len(value) == 64 else str(value)

    return "; ".join(f"{name}: recorded {short(there.get(name))}, now {short(wanted.get(name))}" for name in names)
