"""The teacher's logits on disk: every view of every image, and every sentence, goes through the teacher once.

For all students, all methods and all seeds, and for several processes at a time. Methods that need of the teacher's own
forward pass nothing but its logits (plain KD with any logit distance; Block-KD, whose stones go through the teacher's
blocks all the same) read them from there.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blockkd.calling import Inputs
from blockkd.data.images import FiniteViews
from blockkd.devices import has_room
from blockkd.ranks import rank, world_size
from blockkd.runs import write_text

IDENTITY, LOGITS, CLASSES, FILLED = "identity.json", "logits.f16", "classes.i32", "filled.u8"
EXACT_LOGITS = "logits.f32"
FLUSHED = 50  # batches, after which what was recorded ahead is put on disk
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
        there = json.loads((self.folder / IDENTITY).read_text(encoding="utf-8"))
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


class RecordedTeacher:
    """Gives the teacher's logits of a batch; runs the teacher only on what is not recorded yet.

    On another device than the CPU the rows in use are kept there as well, if they take no more than half of what is
    free. As long as some are missing, each lookup waits for the device; afterwards none does.

    Args:
        table: what is recorded.
        resident: whether to keep rows on the batch's device; None decides by device and memory.
    """

    def __init__(self, table: LogitTable, resident: bool | None = None) -> None:
        self.table, self.resident = table, resident
        self._copy: tuple[Tensor, ...] = ()  # of the table's columns
        self._copied = torch.zeros(0, dtype=torch.bool)  # which rows are in the copy
        self._complete = False  # whether all are

    def lookup(
        self,
        indices: Int[Tensor, " B"],
        views: Int[Tensor, " B"],
        inputs: Inputs,
        teacher: Callable[[Any], Float[Tensor, "B K"]],
    ) -> Float[Tensor, "B K"]:
        """The teacher's logits of a batch, rounded as the table is: in float16 by at most 2^-11 of each logit.

        Args:
            indices: which samples these are, ``(B,)``.
            views: which views of them, ``(B,)``.
            inputs: the batch, images ``(B, ...)`` or named tensors of sentences.
            teacher: batch → logits; run without autocast on those that are not recorded yet.

        Returns:
            ``(B, K)``, on the batch's device: of the images' type, of sentences float32.

        Raises:
            RecordError: there are no such samples or views, or the teacher's logits cannot be recorded.
        """
        first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
        dtype = first.dtype if isinstance(inputs, Tensor) else torch.float32
        if self._complete and self._copy:
            rows = indices * self.table.shape[1] + views
            return self.table.read([column[rows] for column in self._copy]).to(dtype)
        rows = self._rows(indices, views)
        missing = ~self.table.filled(rows)
        if missing.any():
            chosen = missing.to(first.device)
            with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
                fresh = teacher(tree_map(lambda tensor: tensor[chosen], inputs))
            self.table.write(rows[missing], fresh.detach().cpu())
        return self._read(rows, first.device).to(dtype)

    def flush(self) -> None:
        """Put on disk what was recorded since the last time, for other processes and later runs."""
        self.table.flush()
        self._complete = bool(self._copy) and bool(self._copied.all())

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
            return self.table.read([column[rows].to(device) for column in self.table.columns])
        if not self._copy:
            self._copied = self.table.filled()
            self._copy = tuple(column.to(device, copy=True) for column in self.table.columns)
            self._complete = bool(self._copied.all())
        absent = rows[~self._copied[rows]]
        for copied, column in zip(self._copy, self.table.columns, strict=True):
            copied[absent.to(device)] = column[absent].to(device)
        self._copied[absent] = True
        return self.table.read([column[rows.to(device)] for column in self._copy])


def teacher_identity(teacher: nn.Module) -> str:
    """A hash of a network's weights, buffers and structure."""
    digest = hashlib.sha256(repr(teacher).encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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


@torch.no_grad()
def fill(
    recorded: RecordedTeacher,
    images: FiniteViews,
    teacher: Callable[[Any], Float[Tensor, "B K"]],
    device: torch.device,
    batch_size: int = 512,
    share: tuple[int, int] = (0, 1),
) -> Iterator[int]:
    """Run the teacher ahead, on all views that are not recorded yet; what is interrupted goes on where it was.

    Processes that train together share the views: each has those whose row, modulo their number, is its rank.

    Args:
        recorded: the record.
        images: the images that it is of.
        teacher: images → logits, on the device.
        device: where to run it.
        batch_size: images at a time.
        share: which of how many parts of the missing views is run here, where several processes share the work.

    Yields:
        How many rows are still missing.
    """
    table, views = recorded.table, recorded.table.shape[1]
    missing = (~table.filled()).nonzero()[:, 0][share[0] :: share[1]]
    missing = missing[missing % world_size() == rank()]
    for number, rows in enumerate(missing.split(batch_size) if len(missing) else ()):
        inputs, _ = images.batch(rows // views, rows % views)
        recorded.lookup(rows // views, rows % views, tree_map(lambda tensor: tensor.to(device), inputs), teacher)
        if (number + 1) % FLUSHED == 0:
            recorded.flush()
        yield len(missing) - min((number + 1) * batch_size, len(missing))
    recorded.flush()


def record_teacher(
    folder: str | Path, teacher: nn.Module, images: FiniteViews, num_classes: int, top: int | None = None
) -> RecordedTeacher:
    """Open the record of this teacher on these training samples, or begin it.

    Args:
        folder: where it is, or will be.
        teacher: whose logits they are, as it was trained: before its batch norm is folded.
        images: the training images, augmented as they will be in training; or sentences, of which there is one view.
        num_classes: K.
        top: how many of the largest logits to keep of each view; None keeps all. See ``LogitTable``.

    Raises:
        RecordError: the folder holds another record, or there is not enough space on its disk.
        ValueError: the images cannot be told apart from others.
    """
    identity = {"teacher": teacher_identity(teacher)} | images.identity()
    shape = len(images), images.n_views, num_classes
    return RecordedTeacher(LogitTable(folder, identity, shape, top, getattr(images, "logits_dtype", DTYPE)))


def table_bytes(shape: tuple[int, int, int], top: int | None = None, dtype: torch.dtype = DTYPE) -> int:
    """What a table takes on disk: two bytes a number in float16, four for a class of the top, one for a row's mark."""
    images, views, classes = shape
    size = dtype.itemsize
    return images * views * (size * classes + 1 if top is None else size * (top + 1) + 4 * top + 1)


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
