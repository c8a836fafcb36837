"""Checkpoints of a job: sealed by a checksum, the last one and the one before."""

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from blockkd.durable import write_durably
from blockkd.runs import CHECKPOINT, PREVIOUS

SEAL = "\nblockkd sha256 {digest}\n"  # behind the archive, where torch.load does not look
SEAL_BYTES = len(SEAL.format(digest="0" * 64))
CHUNK = 2**20


class DamagedCheckpointError(ValueError):
    """What a checkpoint holds is not what was written."""


class SealedCheckpoints(CheckpointIO):
    """How Lightning's Trainer writes and reads checkpoints: whole or not at all, and never code.

    A new checkpoint keeps the one that it replaces, as ``previous.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint and flush it to the disk before it gets its name. Raises OSError, as on a full disk."""
        del storage_options
        content = io.BytesIO()
        torch.save(checkpoint, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content.getbuffer(), _seal(digest), keep=path.with_name(PREVIOUS))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in it is run. Raises DamagedCheckpointError."""
        del weights_only
        if not is_whole(Path(path)):
            raise DamagedCheckpointError(f"{path} is not what was written: its checksum is wrong")
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete one."""
        Path(path).unlink(missing_ok=True)


def usable_checkpoint(folder: Path, job: object) -> Path | None:
    """The newest checkpoint in a job's folder that is whole; None if the job starts anew.

    Damaged ones are deleted, with a warning that says what happens instead.

    Args:
        folder: of the job.
        job: what the warning calls it.
    """
    damaged = []
    chosen = None
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if path.is_file() and chosen is None:
            if is_whole(path):
                chosen = path
            else:
                damaged.append(path)
    for path in damaged:
        path.unlink(missing_ok=True)  # or else it would be kept instead of a good one
    if damaged:
        said = " and ".join(str(path) for path in damaged)
        instead = "the job starts anew" if chosen is None else "the job goes on from the one before"
        warnings.warn(f"{job}: the checksum of {said} is wrong, so it is damaged: {instead}", stacklevel=2)
    return chosen


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a job that is finished."""
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is, to the bit, what was written."""
    digest = hashlib.sha256()
    try:
        left = path.stat().st_size - SEAL_BYTES
        with path.open("rb") as file:
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
            return left == 0 and file.read() == _seal(digest.hexdigest())
    except OSError:  # as from a disk that cannot read a sector any more
        return False


def _seal(digest: str) -> bytes:
    return SEAL.format(digest=digest).encode()
