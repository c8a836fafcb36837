"""A folder that may come from a stranger, looked at before the library ``datasets`` opens it.

That library takes more than images and tables: it unpacks archives, and a folder's card (``README.md``) may send it to
other folders and other machines. What was given as one folder is to be read as that folder and nothing else.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from blockkd.plain_yaml import PlainYAMLError, load_yaml, read_yaml

CARD, CARD_YAML = "README.md", ".huggingface.yaml"
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4", ".7z", ".rar")
LONGEST_CARD = 2**20


def check_folder(folder: Path) -> None:
    """Raise ValueError where the folder holds an archive, or its card names files that are not in it."""
    for place, _, files in os.walk(folder):
        packed = next((name for name in files if name.lower().endswith(ARCHIVES)), None)
        if packed is not None:
            raise ValueError(
                f"{Path(place) / packed} is an archive, and how much is in it is known only when the disk is full: "
                "unpack it into the folder, or take it out"
            )
    for name in (CARD, CARD_YAML):
        if (folder / name).is_file():
            _check_card(folder / name)


def _check_card(path: Path) -> None:
    try:
        content = _front_matter(path) if path.name == CARD else read_yaml(path)
    except PlainYAMLError as error:
        raise ValueError(f"the card {path} cannot be read: {error}; take it out, or mend it") from error
    configs = content.get("configs") if isinstance(content, dict) else None
    for key, pattern in _named_files(configs):
        if (
            "://" in pattern
            or "::" in pattern
            or ".." in PurePosixPath(pattern).parts
            or pattern.startswith(("/", "~"))
        ):
            raise ValueError(
                f"the card {path} names {pattern!r} under {key}, which is not in the folder: a local dataset is read "
                "from its own folder alone"
            )


def _front_matter(path: Path) -> Any:
    """What a card says between two lines ``---`` at its top."""
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(LONGEST_CARD + 1)
    if len(text) > LONGEST_CARD:
        raise PlainYAMLError(f"it has more than {LONGEST_CARD // 1024} KiB")
    parts = text.lstrip().split("---", 2)
    return load_yaml(parts[1]) if len(parts) == 3 and not parts[0].strip() else None


def _named_files(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text under ``data_files``, ``data_dir`` and ``path``, however deep, with the key."""
    if isinstance(value, str) and key:
        yield key, value
    elif isinstance(value, list):
        for part in value:
            yield from _named_files(part, key)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _named_files(part, key or (str(name) if name in ("data_files", "data_dir", "path") else ""))
