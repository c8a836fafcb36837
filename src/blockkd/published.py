"""What the field has published for a pair, to stand beside our own results and never among them."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        accuracy: top-1 test accuracy in %, as printed.
        source: where it was read, a few words.
        protocol: how it was come by, as far as the source says: epochs, augmentation, last or best epoch, runs.
        url: of the source.
    """

    accuracy: float
    source: str
    protocol: str
    url: str


def published(task: str, pair: str) -> dict[str, Published]:
    """Published numbers by method, under the names of our recipes; empty where there are none.

    Args:
        task: ``"cifar100"`` or ``"imagenet"``.
        pair: teacher and student, as ``"resnet32x4-resnet8x4"``.
    """
    content = _content()
    numbers = {}
    for table in content["tables"]:
        if table["task"] != task or pair not in table["pairs"]:
            continue
        column = table["pairs"].index(pair)
        for method, row in table["rows"].items():
            accuracy, source = row["accuracy"][column], row["source"]
            if accuracy is not None:
                about = content["sources"][source]
                numbers[method] = Published(accuracy, source, protocol=about[task], url=about["url"])
    return numbers


def published_pairs() -> list[tuple[str, str]]:
    """Every (task, pair) with published numbers, in the order of the file."""
    return [(table["task"], pair) for table in _content()["tables"] for pair in table["pairs"]]


@cache
def _content() -> dict[str, Any]:
    text = (files("blockkd") / "published.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
