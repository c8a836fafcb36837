"""What keeps a network from being exported; each message says what to do."""

import importlib
from typing import Any

INSTALL = "pip install 'blockkd[export]'"


class ExportError(ValueError):
    """The network cannot be exported in this way."""


class NotBareError(ExportError):
    """What was to be exported, or was written, holds more than the student."""


def library(module: str, why: str) -> Any:
    """An optional library.

    Args:
        module: what is imported.
        why: what it is needed for.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        if (error.name or name).partition(".")[0] != name:
            raise
        raise ExportError(f"{why} needs the library {name}, which is missing: {INSTALL}") from error


def first_line(error: BaseException, longest: int = 240) -> str:
    """What an error says in its first line that says something; compilers say pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    return said if len(said) <= longest else f"{said[:longest]}…"
