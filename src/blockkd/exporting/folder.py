"""The folder of an export: whole or not there, and never in the place of something else."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockkd.durable import DRAFT, flush_folder
from blockkd.exporting.errors import ExportError

MANIFEST = "export.json"
KIND = "blockkd export"


def check_free(path: Path, overwrite: bool) -> None:
    """Raise ExportError unless an export can be put at ``path``; writes nothing.

    Args:
        path: the folder.
        overwrite: whether an export that is there may be replaced; anything else never may.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ExportError(f"{path} is no folder; choose another with --output")
    blocker = next(parent for parent in path.absolute().parents if parent.exists())
    if not blocker.is_dir() or not os.access(blocker, os.W_OK):
        raise ExportError(f"cannot write to {path}: {blocker} is not a folder that can be written to")
    if not path.is_dir() or not any(path.iterdir()):
        return
    foreign = _foreign(path)
    if foreign is not None:
        raise ExportError(f"{path} holds {foreign}, which no export wrote; choose another folder with --output")
    if not overwrite:
        raise ExportError(
            f"{path} already holds an export; replace it with --overwrite, or choose another folder with --output"
        )


@contextmanager
def draft_of(path: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, beside ``path``; it gets that name when all has been written, and else is deleted.

    Raises:
        ExportError: see ``check_free``.
        OSError: it cannot be written.
    """
    check_free(path, overwrite)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    draft = path.absolute().with_name(f".{path.name}.{os.getpid()}{DRAFT}")
    if draft.exists():  # of a killed process that had our number
        shutil.rmtree(draft)
    draft.mkdir()
    try:
        yield draft
        check_free(path, overwrite)
        _publish(draft, path.absolute())
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def manifest(folder: Path, facts: dict[str, Any]) -> str:
    """The content of ``export.json``: all that is known of the export, and size and SHA-256 of every file."""
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return json.dumps({"kind": KIND, "version": 1, **facts, "files": files}, indent=2) + "\n"


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(draft: Path, path: Path) -> None:
    """Give the draft its name. In between, for two renames, there is none; never is there a part of one."""
    for folder in (draft, *(entry for entry in draft.rglob("*") if entry.is_dir())):
        _flush_files(folder)
    old = path.with_name(f".{path.name}.{os.getpid()}.replaced{DRAFT}")
    if path.is_dir():
        path.replace(old)
    try:
        draft.replace(path)
    except OSError:
        if old.is_dir():
            old.replace(path)
        raise
    flush_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush_files(folder: Path) -> None:
    for file in folder.iterdir():
        if file.is_file():  # libraries wrote some of them, and flushed nothing
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    flush_folder(folder)


def _foreign(path: Path) -> str | None:
    """Something in the folder that is not of an export, or None."""
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        known = {MANIFEST, *content["files"]} if content["kind"] == KIND else set()
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    found = sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*") if not entry.is_dir())
    return next((name for name in found if name not in known), None if known else "other folders")
