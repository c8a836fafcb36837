"""What ends a command with one sentence instead of a traceback."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from blockkd.durable import FULL

LONG_LIST = 40


class InvalidInputError(Exception):
    """The user's input cannot be used; the message says what was got, what was expected and what to do.

    It becomes one line in which nothing is left that a terminal would obey: names in it may come from a stranger.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


@contextmanager
def user_input(what: str = "") -> Iterator[None]:
    """Turn errors that come from the user's values into an InvalidInputError; ``what`` names the place.

    Wrapped around the few lines that read or check input, never around training: an error there is a defect. A class
    that a recipe names raises what it likes when its arguments do not suit it. A full disk is no input, and stays an
    OSError.
    """
    try:
        yield
    except InvalidInputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        expected = isinstance(error, ValueError | TypeError | OSError | ImportError | RuntimeError)
        message = f"{error}" if expected and str(error) else f"{type(error).__name__} {error}".strip()
        raise InvalidInputError(f"{what}: {message}" if what else message) from error


def printable(text: str) -> str:
    """The text with everything spelled out that a terminal would obey or could not show."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def nearest(name: str, known: Sequence[str]) -> str:
    """``"did you mean KD?"``, or the list when nothing is near and the list is short."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(by_lower[match] for match in near)}?"
    return f"there are {', '.join(known[:LONG_LIST])}{', ...' if len(known) > LONG_LIST else ''}"
