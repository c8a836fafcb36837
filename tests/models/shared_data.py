"""Finds data that is not part of the repository, or skips the test."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def data_file(name: str) -> Path:
    """The file ``name`` in the folder ``BLOCKKD_DATA``, or in ``../shared/data``; else skips the test."""
    folder = Path(os.environ.get("BLOCKKD_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not in {folder}; set BLOCKKD_DATA to the folder that holds it")
    return folder / name
