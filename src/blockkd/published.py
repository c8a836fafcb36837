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
        accuracy: top-1 test accuracy in %, or the metric of a task of GLUE × 100, as printed.
        source: where it was read, a few words.
        protocol: how it was come by, as far as the source says: epochs, augmentation, last or best epoch, runs.
        url: of the source.
        verified: whether it was read in the source; otherwise it is recalled, and shown as unverified.
    """

    accuracy: float
    source: str
    protocol: str
    url: str
    verified: bool = True


def published(task: str, pair: str) -> dict[str, Published]:
    """Published numbers by method, under the names of our recipes; empty where there are none.

    Args:
        task: ``"cifar100"``, ``"imagenet"``, or a task of GLUE, as ``"sst2"``.
        pair: teacher and student, as ``"resnet32x4-resnet8x4"``; of GLUE ``"bert-base_6-layer"``.
    """
    content = _content()
    numbers = {}
    for columns, protocol, rows in _tables():
        if (task, pair) not in columns:
            continue
        column = columns.index((task, pair))
        for method, row in rows.items():
            accuracy, source = row["accuracy"][column], row["source"]
            if accuracy is not None:
                about = content["sources"][source]
                verified = about.get("verified", True)
                numbers[method] = Published(accuracy, source, about[protocol], about["url"], verified)
    return numbers


def published_pairs() -> list[tuple[str, str]]:
    """Every (task, pair) of images with published numbers, in the order of the file; pairs are named by networks."""
    return [(table["task"], pair) for table in _content()["tables"] for pair in table["pairs"]]


def published_glue() -> list[tuple[str, str]]:
    """Every (task, pair) of GLUE with published numbers, in the order of the file."""
    glue = _content()["glue"]
    return [(task, glue["pair"]) for task in glue["tasks"]]


def _tables() -> list[tuple[list[tuple[str, str]], str, dict[str, Any]]]:
    """Of each table the (task, pair) of its columns, under which name sources tell the protocol, and its rows."""
    content = _content()
    images = [([(t["task"], pair) for pair in t["pairs"]], t["task"], t["rows"]) for t in content["tables"]]
    return [*images, (published_glue(), "glue", content["glue"]["rows"])]


@cache
def _content() -> dict[str, Any]:
    text = (files("blockkd") / "published.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
