"""A recipe names classes and nothing else: a class path to other code is refused before anything is built."""

import importlib
import inspect
from typing import Any

from jsonargparse import Namespace
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from blockkd.commands.errors import InvalidInputError
from blockkd.data.images import ImageData
from blockkd.distances import LogitDistance
from blockkd.models.named import Named
from blockkd.text.networks import Pretrained, StudentOf

# A Distiller is an nn.Module.
MAY_BE_NAMED = (nn.Module, Named, Pretrained, StudentOf, ImageData, LogitDistance, Optimizer, LRScheduler)


def check_class_paths(config: Any, option: str = "") -> None:
    """Look at every class path of a parsed recipe, however deep.

    jsonargparse compares a class with the type that an option asks for only where it is a bare string; behind
    ``class_path`` it would call any function with the arguments beside it. A bare string may also name a function, to
    be called later: of these only the package's own are accepted, such as ``blockkd.connector``.

    Args:
        config: a parsed recipe, or a part of it.
        option: where that part stands.

    Raises:
        InvalidInputError: a class path names something that is not a network, dataset, method, logit distance,
            optimizer or learning rate schedule.
    """
    content = vars(config) if isinstance(config, Namespace) else config
    if isinstance(content, list | tuple):
        content = {str(place): value for place, value in enumerate(content)}
    if not isinstance(content, dict):
        if callable(content) and not _is_ours(content):
            raise not_to_be_named(f"{content.__module__}.{content.__qualname__}", option)
        return
    path = content.get("class_path")
    if isinstance(path, str) and not _is_class(path):
        raise not_to_be_named(path, option)
    for key, value in content.items():
        check_class_paths(value, f"{option}.{key}".removeprefix("."))


def not_to_be_named(path: str, option: str) -> InvalidInputError:
    """What to say of a class path that is none."""
    return InvalidInputError(
        f"--{option}: {path} cannot be named in a recipe; expected a network, dataset, method, logit distance, "
        "optimizer or learning rate schedule, by its class path"
    )


def _is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == "blockkd"


def _is_class(path: str) -> bool:
    module, _, name = path.rpartition(".")
    named = getattr(importlib.import_module(module), name, None)
    return inspect.isclass(named) and issubclass(named, MAY_BE_NAMED)
