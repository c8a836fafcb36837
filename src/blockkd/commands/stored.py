"""The folder of a run that goes on, looked at before anything is written: it may be damaged, or a stranger's."""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

from blockkd.commands.errors import InvalidInputError
from blockkd.runs import METRICS, RunFolder
from blockkd.scores import ACCURACY, TITLES

RESULT = "result.json"
LARGEST_FILE = 2**26  # bytes
NUMBERS_OF_RESULT = ("seed", "epochs", "parameters", "flops_per_image", "seconds")
NUMBERS_OF_EPOCH = ("seed", "epoch")


def check_stored(folder: RunFolder) -> None:
    """Raise InvalidInputError where a link leads out of the folder, or a table of a job cannot be read."""
    _check_links(folder)
    for path in sorted(folder.path.glob(f"*/seed_*/{RESULT}")):
        _check_table(path, _results)
    for path in sorted(folder.path.glob(f"*/seed_*/{METRICS}")):
        _check_table(path, _metrics)


def _check_links(folder: RunFolder) -> None:
    own = folder.path.resolve()
    for place, folders, files in os.walk(own):
        for name in (*folders, *files):
            path = Path(place) / name
            target = Path(os.path.realpath(path))  # Path.resolve fails where links go round in a circle
            if path.is_symlink() and not target.is_relative_to(own):
                raise InvalidInputError(
                    f"{folder.path / path.relative_to(own)} is a link to {target}, outside of the run: put what it "
                    "stands for in its place"
                )


def _check_table(path: Path, rows_of: Any) -> None:
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"no file of at most {LARGEST_FILE // 2**20} MiB")
        rows, numbers = rows_of(path)
        for row in rows:
            _check_row(row, numbers)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, csv.Error) as error:
        raise InvalidInputError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete {path.parent}, and the job is done again"
        ) from error


def _results(path: Path) -> tuple[list[Any], tuple[str, ...]]:
    result = json.loads(path.read_text(encoding="utf-8"))
    metric = result.get("metric", ACCURACY) if isinstance(result, dict) else ACCURACY
    return [result], (*NUMBERS_OF_RESULT, f"test_{metric}")


def _metrics(path: Path) -> tuple[list[Any], tuple[str, ...]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True)), NUMBERS_OF_EPOCH


def _check_row(row: Any, numbers: tuple[str, ...]) -> None:
    if not isinstance(row, dict) or not isinstance(row.get("method"), str):
        raise ValueError("expected values by name, with the method")
    for name, value in row.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            raise ValueError(f"{name} is {value!r}")
    measured = [name for name in row if name.endswith(tuple(TITLES))]
    for name in (*numbers, *measured):
        if row[name] == "" and name in measured:  # an epoch without this measurement
            continue
        if not math.isfinite(float(row[name])):
            raise ValueError(f"{name} is {row[name]!r}")
