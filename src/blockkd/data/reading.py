"""A dataset of the Hugging Face hub or of a local folder, through the ``datasets`` library."""

import importlib
import logging
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockkd.data.folders import check_folder


def read_splits(path: str, subset: str | None, revision: str | None) -> Any:
    """The dataset's splits by name (a ``datasets.DatasetDict``).

    Args:
        path: a dataset's name on the hub, or a folder.
        subset: which of its configurations; None where it has one.
        revision: branch, tag or commit on the hub; None is its newest.

    Raises:
        ValueError: it is not there, or not as expected.
        ModuleNotFoundError: the library ``datasets`` is missing.
    """
    datasets = _library(path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            warnings.warn(f"revision {revision!r} has no effect: {path!r} is a local folder", stacklevel=2)
        check_folder(folder)
        path, revision = str(folder), None
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):  # no name on the hub either
        raise ValueError(f"there is no folder {path!r}; path is a folder, or a name on the hub like uoft-cs/cifar100")
    elif revision is None:
        warnings.warn(
            f"{path!r} is taken from the hub in its newest state, which can change between two runs: name a commit "
            "as revision",
            stacklevel=2,
        )
    try:
        return datasets.load_dataset(path, name=subset, revision=revision)
    except Exception as error:  # a damaged file can fail anywhere in its reader, in any way
        reason = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        raise ValueError(
            f"cannot read {path!r}: {' '.join(str(reason or error).split())} (expected a folder with train/CLASS/*.png "
            "and test/CLASS/*.png, a folder with train*.parquet and test*.parquet, or the name of a dataset on the hub)"
        ) from error


def read_files(files: Mapping[str, Sequence[str]]) -> Any:
    """Splits (a ``datasets.DatasetDict``) from parquet files, by name.

    Raises:
        ValueError: a file cannot be read.
        ModuleNotFoundError: the library ``datasets`` is missing.
    """
    first = next(iter(files.values()))[0]
    datasets = _library(first)
    try:
        return datasets.load_dataset("parquet", data_files={split: list(names) for split, names in files.items()})
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"cannot read {first!r} and the files beside it: {' '.join(str(error).split())}") from error


def _library(path: str) -> Any:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path!r} is read by the library datasets, which is missing: pip install datasets"
        ) from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs of an error comes as the error, too
    return datasets


def find_test_split(path: str, known: Sequence[str], train: str, test: str | None) -> str:
    """The name of the test split: the given one, or else ``test`` or ``validation``.

    Raises:
        ValueError: names the splits that exist when ``train`` or ``test`` is not among them.
    """
    if test is None:
        found = [name for name in ("test", "validation") if name in known and name != train]
        if train in known and not found:
            raise ValueError(f"{path!r} has no test or validation split, only {known}: set test_split")
        test = found[0] if found else train
    for option, name in (("train_split", train), ("test_split", test)):
        if name not in known:
            raise ValueError(f"{path!r} has no split {name!r}, it has {known}: set {option}")
    return test


def image_files(split: Any, column: str) -> Any:
    """A column of images as files, not decoded: ``datasets`` would stop at the first corrupt one."""
    if type(split.features[column]).__name__ == "Image":
        split = split.cast_column(column, type(split.features[column])(decode=False))
    return split.select_columns([column])
