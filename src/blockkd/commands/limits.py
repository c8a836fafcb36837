"""What no recipe needs: texts that grow when they are read, and numbers that would keep a machine busy for ever."""

import re
from typing import Any

from jsonargparse import Namespace

from blockkd.commands.errors import InvalidInputError
from blockkd.plain_yaml import PlainYAMLError, check_grows

LONGEST_TEXT = 20_000
LONGEST_NUMBER = 200  # bits
# The last part of an option → the most that is accepted. Above, only a slip of the hand or ill will is left.
CEILINGS = {
    "seed": 2**32 - 1,  # where NumPy's end
    "split_seed": 2**32 - 1,
    "seeds": 10_000,
    "epochs": 10**7,
    "threads": 4096,
    "num_workers": 4096,
    "devices": 4096,
    "num_nodes": 10**5,
    "depth": 10_000,
    "width": 10_000,
    "num_classes": 10**7,
    "batch_size": 10**7,
    "eval_batch_size": 10**7,
    "image_side": 2**14,
    "resize_side": 2**14,
}
_DUNDER_PATH = re.compile(r"\w+\.__\w+[\w.]*")  # also within a text that is read as YAML later


def check_values(content: Any, where: str) -> None:
    """Look at every value before jsonargparse does, which reads texts as YAML and imports what looks like a class path.

    Args:
        content: a recipe, or the arguments of the command line by number.
        where: what it is called in a message.

    Raises:
        InvalidInputError: a number has more digits than Python writes out; a text is too long, would grow beyond
            measure when read as YAML, or names a module by a name that Python keeps for itself, such as
            ``package.__main__``, which runs when it is imported.
    """
    for place, text in _leaves(content, ""):
        said = f"{where}, {place}" if place else where
        if isinstance(text, int) and text.bit_length() > LONGEST_NUMBER:
            raise InvalidInputError(f"{said}: a number of more than {LONGEST_NUMBER} bits")
        if not isinstance(text, str):
            continue
        if len(text) > LONGEST_TEXT:
            raise InvalidInputError(f"{said}: a text of {len(text):,} characters, expected at most {LONGEST_TEXT:,}")
        try:
            check_grows(text)
        except PlainYAMLError as error:
            raise InvalidInputError(f"{said}: the text cannot be used as a value, since {error}") from error
        if named := _DUNDER_PATH.search(text):
            raise InvalidInputError(
                f"{said}: {named[0]} cannot be named in a recipe; expected the class path of a class"
            )


def check_numbers(config: Any) -> None:
    """Raise InvalidInputError where a number of a parsed recipe is above its ceiling."""
    for place, value in _leaves(config, ""):
        ceiling = CEILINGS.get(place.rpartition(".")[2])
        if ceiling is not None and isinstance(value, int | float) and value > ceiling:
            raise InvalidInputError(f"--{place} is {value:,}, expected at most {ceiling:,}")


def _leaves(value: Any, place: str) -> list[tuple[str, Any]]:
    content = vars(value) if isinstance(value, Namespace) else value
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return [(place, content)]
    return [leaf for key, part in content.items() for leaf in _leaves(part, f"{place}.{key}".removeprefix("."))]
