"""A network by its name, as a recipe says it."""

from pathlib import Path
from typing import Any

from torch import nn

from blockkd.models.create import create_model


class Named:
    """Builds the network of a name anew at every call; see ``create_model``.

    Args:
        name: ``"resnet32x4"``, ``"wrn_40_2"``, ..., or ``"timm/NAME"``, ``"torchvision/NAME"``,
            ``"transformers/NAME"``.
        num_classes: number of logits; None is that of the data.
        weights: a checkpoint to load.
        pretrained: start from the weights that the library has for the name.
        options: further arguments of the network, such as ``{"in_channels": 1}``.
    """

    def __init__(
        self,
        name: str,
        num_classes: int | None = None,
        weights: str | Path | None = None,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.num_classes, self.weights, self.pretrained = name, num_classes, weights, pretrained
        self.options = dict(options or {})

    def __call__(self) -> nn.Module:
        """The network.

        Raises:
            ValueError: there is no such network, its arguments or its weights do not fit, or ``num_classes`` is
                neither given nor known from the data.
        """
        if self.num_classes is None:
            raise ValueError(f"how many classes is {self.name} to have? Set num_classes")
        return create_model(self.name, self.num_classes, self.weights, pretrained=self.pretrained, **self.options)
