"""The folder of a report: its page, its figures, and the list by which a later report knows them for a report's."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from blockkd.durable import DRAFT, write_durably

PAGE, LIST = "index.html", "figures.json"
KINDS = (".png", ".svg")


def is_free(folder: Path) -> bool:
    """Whether a report may be put there: nothing is in it, or a report, or what one left that was cut short."""
    if not folder.is_dir() or (folder / PAGE).is_file():
        return True
    return all(path.name == LIST or path.suffix in (*KINDS, DRAFT) for path in folder.iterdir())


def write_report(folder: Path, page: str, figures: Mapping[str, bytes]) -> None:
    """Write all of it, and remove the figures that an older report wrote and this one does not.

    First the list, so that a report that is cut short knows its figures, then these, and the page last: where it lies,
    all that it names does.

    Args:
        folder: made where it is missing.
        page: HTML.
        figures: their content by file name.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    older = _listed(folder)
    own = {name: hashlib.sha256(content).hexdigest() for name, content in figures.items()}
    _write_list(folder, older | own)
    for name, content in figures.items():
        write_durably(folder / name, content, flush=False)
    write_durably(folder / PAGE, page.encode("utf-8"))
    for name in older.keys() - own.keys():
        if _is_as_written(folder / name, older[name]):
            (folder / name).unlink()
    _write_list(folder, own)


def _listed(folder: Path) -> dict[str, str]:
    """What reports have written here, with SHA-256; a damaged list counts for nothing, nor what is no figure in it."""
    try:
        content = json.loads((folder / LIST).read_text(encoding="utf-8"))["figures"]
        return {
            name: str(digest)
            for name, digest in content.items()
            if Path(name).name == name and Path(name).suffix in KINDS
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_as_written(path: Path, digest: str) -> bool:
    """Whether the file is still the report's: somebody may have put another in its place."""
    return path.is_file() and not path.is_symlink() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _write_list(folder: Path, figures: Mapping[str, str]) -> None:
    text = json.dumps({"written_by": "blockkd report", "figures": dict(sorted(figures.items()))}, indent=2) + "\n"
    write_durably(folder / LIST, text.encode("utf-8"))
