"""Any image classifier by its name: the field's networks, and those of timm, torchvision and transformers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from blockkd.models.libraries import from_timm, from_torchvision, from_transformers, nearest
from blockkd.models.weights import load_weights
from blockkd.models.zoo import NETWORKS

# (name within the library, number of classes, whether to load its weights, options) → network
LIBRARIES: Mapping[str, Callable[[str, int, bool, dict[str, Any]], nn.Module]] = {
    "timm": from_timm,
    "torchvision": from_torchvision,
    "transformers": from_transformers,
}


def create_model(
    name: str,
    num_classes: int = 100,
    weights: str | Path | None = None,
    *,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Build the classifier called ``name``: images ``(B, C, H, W)`` → logits ``(B, num_classes)``.

    Nothing is downloaded unless ``pretrained`` or a name on the Hugging Face hub asks for it.

    Args:
        name: a name of ``NETWORKS`` (``"resnet32x4"``, ``"wrn_40_2"``, ``"ShuffleV1"``, ...), or
            ``"timm/NAME"``, ``"torchvision/NAME"`` or ``"transformers/NAME"`` for a network of those libraries, which
            must be installed. NAME is, for timm and torchvision, a network's, behind which a point and a tag can say
            which of its pretrained weights are meant (``"timm/resnet50.a1_in1k"``,
            ``"torchvision/resnet50.IMAGENET1K_V1"``; without one the library's default); for transformers a name on
            the hub, or a local folder with ``config.json`` and, for pretrained weights, ``model.safetensors``.
        num_classes: number of logits.
        weights: a checkpoint to load (see ``load_weights``), after all else; every tensor of it must fit.
        pretrained: start from the weights that the library has for the name; where they tell another number of
            classes apart, the classifier alone starts anew. False starts from random numbers.
        **options: further arguments of the network: ``in_channels=1``, ``dropout=0.3`` (wide ResNets), those of
            timm's and torchvision's functions, the entries of the configuration (transformers), ...; and
            ``revision``, the branch, tag or commit to take from the hub (timm, transformers). Without it the newest
            is taken, with a warning.

    Raises:
        ValueError: no network has that name (the message gives the nearest), ``num_classes`` is below 1, there are no
            pretrained weights, or the checkpoint does not fit.
        TypeError: the network has no such option.
        ModuleNotFoundError: the library that ``name`` asks for is not installed.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected 1 or more")
    library, _, rest = name.partition("/")
    if library in LIBRARIES and rest:
        network = LIBRARIES[library](rest, num_classes, pretrained, options)
    elif name not in NETWORKS:
        raise ValueError(
            f"no network is called {name!r}; {nearest(name, NETWORKS)} "
            f"({', '.join(f'{library}/NAME' for library in LIBRARIES)} are those of these libraries)"
        )
    elif pretrained:
        raise ValueError(f"{name} has no pretrained weights to load by its name; give a file as weights")
    else:
        network = NETWORKS[name](num_classes=num_classes, **options)
    if weights is not None:
        load_weights(network, weights)
    return network
