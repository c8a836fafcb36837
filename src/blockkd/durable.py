"""Files that are either whole or not there, whatever ends the process or the machine while they are written."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

DRAFT = ".draft"
# No space, none within the quota, or none within the limit on the size of files.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_durably(path: Path, *parts: bytes | memoryview, keep: Path | None = None, flush: bool = True) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it.

    Args:
        path: the file; the folder must exist.
        parts: what is to be in it, one after the other.
        keep: where the file goes that bears the name now, if there is one; by default it is replaced.
        flush: wait for the disk. Otherwise a machine that loses power may lose the file; a killed process never does.

    Raises:
        OSError: the file cannot be written, as on a full disk; what was there before is still there.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}{DRAFT}")
    try:
        with draft.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        draft.replace(path)
        if flush:
            flush_folder(path.parent)
    except OSError as error:  # write() itself does not say which file it was
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(folder: Path, name: str = "*") -> None:
    """Delete what processes left behind that were killed while they wrote; nobody else may be writing there.

    Args:
        folder: where.
        name: of which files; a pattern.
    """
    for draft in folder.glob(f".{name}.*{DRAFT}"):
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Bring new names in it to the disk; systems that cannot flush a folder do so by themselves."""
    with suppress(OSError):
        entry = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)
