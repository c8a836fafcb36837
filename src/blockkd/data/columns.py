"""Which columns of a dataset hold images and labels, and labels of any kind → class numbers.

A split here is a ``datasets.Dataset``.
"""

import re
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from blockkd.data.images import check_labels


def check_column(split: Any, column: str) -> None:
    """Raise ValueError with the columns that exist when ``column`` is not among them."""
    if column not in split.column_names:
        raise ValueError(f"there is no column {column!r} in the {split.split} split; its columns are {_columns(split)}")


def _columns(split: Any) -> str:
    return ", ".join(f"{name} ({_kind(feature)})" for name, feature in split.features.items())


def _kind(feature: Any) -> str:
    if isinstance(feature, dict):
        return "Image" if {"bytes", "path"} <= set(feature) else "struct"
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


def _find(split: Any, kind: str, option: str) -> str:
    found = [name for name, feature in split.features.items() if _kind(feature) == kind]
    if len(found) != 1:
        raise ValueError(
            f"{len(found) or 'no'} columns are of type {kind}, expected exactly one: set {option} to one of the "
            f"columns {_columns(split)}"
        )
    return str(found[0])


def image_column(split: Any, given: str | None) -> str:
    """The column of images: the given one, or else the only one. Raises ValueError with the columns that exist."""
    column = given or _find(split, "Image", "image_column")
    check_column(split, column)
    if _kind(split.features[column]) not in ("Image", "binary"):
        raise ValueError(f"column {column!r} holds no images; the columns are {_columns(split)}: set image_column")
    return column


def label_column(split: Any, given: str | None) -> str:
    """The column of labels: the given one, or else the only one of type ClassLabel. Raises ValueError likewise."""
    column = given or _find(split, "ClassLabel", "label_column")
    check_column(split, column)
    if not re.fullmatch(r"ClassLabel|u?int\d+|(large_)?string", _kind(split.features[column])):
        raise ValueError(
            f"column {column!r} holds no labels (class labels, whole numbers or strings); the columns are "
            f"{_columns(split)}: set label_column"
        )
    return column


def class_numbers(
    train: Any, test: Any, column: str, split_names: tuple[str, str]
) -> tuple[list[str], Int[Tensor, " N"], Int[Tensor, " M"]]:
    """The classes' names, and the class numbers of both splits.

    Raises:
        ValueError: a label is missing, out of range, or does not occur in the training split.
    """
    values = [split.select_columns([column])[:][column] for split in (train, test)]  # one by one takes seconds
    for name, split_values in zip(split_names, values, strict=True):
        if None in split_values:
            raise ValueError(f"image {split_values.index(None)} of the {name} split has no label")
    feature = train.features[column]
    if _kind(feature) == "ClassLabel":
        class_names = list(feature.names)
        numbers = [torch.tensor(split_values) for split_values in values]
        for name, labels in zip(split_names, numbers, strict=True):
            if (labels == -1).all():
                raise ValueError(f"the labels of the {name} split are withheld (all are -1): choose another split")
            check_labels(labels, len(class_names), name)
    else:
        classes = sorted(set(values[0]))
        class_names = [str(value) for value in classes]
        number_of = {value: number for number, value in enumerate(classes)}
        unknown = [value for value in values[1] if value not in number_of]
        if unknown:
            raise ValueError(
                f"label {unknown[0]!r} in the {split_names[1]} split does not occur in the {split_names[0]} split"
            )
        numbers = [torch.tensor([number_of[value] for value in split_values]) for split_values in values]
    return class_names, numbers[0], numbers[1]
