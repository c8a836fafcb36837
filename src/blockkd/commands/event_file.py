"""TensorBoard's event file, written by the process that trains, at once and without a buffer.

tensorboardX's own writer, which Lightning's logger takes, leaves the file to a thread: where the disk is full that
thread dies, and the training waits for it without end. Its messages and checksums are used all the same.
"""

import os
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from struct import pack
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

VERSION = "brain.Event:2"


class EventFile(Logger):
    """Metrics of a job for TensorBoard; a resumed job begins another file beside.

    Args:
        folder: where the file lies; made on first use.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"

    @property
    def name(self) -> str | None:
        """It names no folder for others."""
        return None

    @property
    def version(self) -> str | None:
        """It names no folder for others."""
        return None

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """They are in the run's recipe."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers. Raises OSError that names the file, as on a full disk."""
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        records = record(Event(wall_time=time.time(), step=step or 0, summary=Summary(value=values)))
        try:
            if not self.path.exists():
                self.path.parent.mkdir(exist_ok=True)
                records = record(Event(wall_time=time.time(), file_version=VERSION)) + records
            with self.path.open("ab", buffering=0) as file:
                while records:  # a disk that is nearly full takes a part, and refuses the rest
                    records = records[file.write(records) or 0 :]
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self.path)) from error


def record(event: Any) -> bytes:
    """An event as it stands in the file: length, its checksum, the event, its checksum."""
    content = event.SerializeToString()
    length = pack("<Q", len(content))
    return b"".join((length, pack("<I", masked_crc32c(length)), content, pack("<I", masked_crc32c(content))))
