"""What the classes that a recipe names can be set to."""

import inspect
from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

APART = "blockkd.bench."  # what is timed beside the methods
GIVEN = ("self", "args", "teacher", "example")  # which no option sets


def subclasses(base: type) -> list[type[Any]]:
    """All of the package, or of torch's optimizers and schedules, however deep."""
    found: dict[type[Any], None] = {}
    waiting: list[type[Any]] = [base]
    while waiting:
        below: list[type[Any]] = waiting.pop().__subclasses__()
        waiting += below
        found |= dict.fromkeys(
            one for one in below if one.__module__.startswith("blockkd.") or base in (Optimizer, LRScheduler)
        )
    return list(found)


def class_names(base: type) -> list[str]:
    """Their names, without those that cannot be made or are for the package alone."""
    return sorted(
        {
            one.__name__
            for one in subclasses(base)
            if not (one.__name__.startswith("_") or inspect.isabstract(one) or one.__module__.startswith(APART))
        }
    )


def settings_of(one: type) -> dict[str, inspect.Parameter]:
    """The settings of a class by name, those included that it hands on to its bases."""
    return {parameter.name: parameter for parameter in _parameters(one) if parameter.name not in GIVEN}


def _parameters(one: type) -> Iterator[inspect.Parameter]:
    for parent in inspect.getmro(one):
        if "__init__" not in vars(parent) or parent is object:
            continue
        parameters = list(inspect.signature(vars(parent)["__init__"]).parameters.values())
        yield from (parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD)
        if parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            return
