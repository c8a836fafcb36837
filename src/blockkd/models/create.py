"""Any image classifier by its name: the field's CIFAR networks, and those of timm and torchvision."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from blockkd.models.weights import load_weights
from blockkd.models.zoo import NETWORKS


def create_model(name: str, num_classes: int = 100, weights: str | Path | None = None, **options: Any) -> nn.Module:
    """Build the classifier called ``name``: images ``(B, C, H, W)`` → logits ``(B, num_classes)``.

    Args:
        name: a name of ``NETWORKS`` (``"resnet32x4"``, ``"wrn_40_2"``, ``"ShuffleV1"``, ...), or
            ``"timm/NAME"`` or ``"torchvision/NAME"`` for a network of those libraries, which must be
            installed.
        num_classes: number of logits.
        weights: a checkpoint to load (see ``load_weights``); without one the network is left as it starts.
        **options: further arguments of the network: ``in_channels=1``, ``dropout=0.3`` (wide ResNets), ...

    Raises:
        ValueError: no network has that name (the message gives the nearest), ``num_classes`` is below 1, or
            the checkpoint does not fit.
        ModuleNotFoundError: the library that ``name`` asks for is not installed.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected 1 or more")
    library, _, rest = name.partition("/")
    if library in LIBRARIES and rest:
        network = LIBRARIES[library](rest, num_classes, options)
    elif name in NETWORKS:
        network = NETWORKS[name](num_classes=num_classes, **options)
    else:
        raise ValueError(
            f"no network is called {name!r}; {_nearest(name, NETWORKS)} "
            "(timm's and torchvision's are called timm/NAME and torchvision/NAME)"
        )
    if weights is not None:
        load_weights(network, weights)
    return network


def _from_timm(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise _not_installed("timm", name) from error
    if not timm.is_model(name.partition(".")[0]):  # what follows a point names pretrained weights
        raise ValueError(f"timm has no network called {name!r}; {_nearest(name, timm.list_models())}")
    if "in_channels" in options:
        options["in_chans"] = options.pop("in_channels")
    network: nn.Module = timm.create_model(name, num_classes=num_classes, **options)
    return network


def _from_torchvision(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        raise _not_installed("torchvision", name) from error
    classifiers = models.list_models(module=models)
    if name not in classifiers:
        raise ValueError(f"torchvision has no classifier called {name!r}; {_nearest(name, classifiers)}")
    if options.pop("in_channels", 3) != 3:
        raise ValueError("torchvision's networks take 3 channels; timm's take any (timm/NAME)")
    network: nn.Module = models.get_model(name, num_classes=num_classes, **options)
    return network


LIBRARIES: Mapping[str, Callable[[str, int, dict[str, Any]], nn.Module]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}


def _nearest(name: str, known: Iterable[str]) -> str:
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=3)
    if not near:
        names = list(by_lower_case.values())
        return f"there are {', '.join(names[:30])}{', ...' if len(names) > 30 else ''}"
    return f"did you mean {' or '.join(by_lower_case[match] for match in near)}?"


def _not_installed(library: str, name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"'{library}/{name}' needs {library}, which is not installed: pip install {library}", name=library
    )
