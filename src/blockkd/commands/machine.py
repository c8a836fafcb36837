"""``--json``: one document on standard output, for programs; all that people read goes to the error stream."""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

FLAG = "--json"
HELP = "print one JSON document on standard output, and what people read on the error stream"

Document = Mapping[str, Any]


class JsonOption(argparse.Action):
    """``--json`` in a command's help; it is taken off the line before the command is run."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        del dest
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, *given: Any, **options: Any) -> None:
        """Change nothing."""


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Say in the parser's help that there is ``--json``."""
    parser.add_argument(FLAG, action=JsonOption, help=HELP)


@contextmanager
def people_on_the_error_stream() -> Iterator[None]:
    """Send to the error stream whatever is printed meanwhile, also by libraries beneath Python."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def as_json(document: Document) -> str:
    """One line of strict JSON: numbers in full, and null for those that are not finite."""
    return json.dumps(_plain(document), allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, Iterable):
        return [_plain(part) for part in value]
    return str(value)
