"""What ends a command with one sentence instead of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class InvalidInputError(Exception):
    """The user's input cannot be used; the message says what was got, what was expected and what to do."""


@contextmanager
def user_input(what: str = "") -> Iterator[None]:
    """Turn errors that come from the user's values into an InvalidInputError; ``what`` names the place.

    Wrapped around the few lines that read or check input, never around training: an error there is a defect.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError) as error:
        message = f"{error}" or type(error).__name__
        raise InvalidInputError(f"{what}: {message}" if what else message) from error
