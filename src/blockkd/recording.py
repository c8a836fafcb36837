"""The teacher's logits on disk: every view of every image, and every sentence, goes through the teacher once.

For all students, all methods and all seeds, and for several processes at a time. Methods that need of the teacher's own
forward pass nothing but its logits (plain KD with any logit distance; Block-KD, whose stones go through the teacher's
blocks all the same) read them from there.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blockkd.calling import Inputs
from blockkd.data.images import FiniteViews
from blockkd.devices import has_room
from blockkd.logit_table import DTYPE, LogitTable, RecordError
from blockkd.ranks import rank, world_size

FLUSHED = 50  # batches, after which what was recorded ahead is put on disk


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


def _span(numbers: Tensor) -> str:
    return f"{int(numbers.min())} … {int(numbers.max())}"
