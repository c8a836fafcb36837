"""transformers' image classifiers return an object that holds the logits; here they return the logits."""

from functools import cache
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class _LogitsOnly:
    """Laid over a classifier's class, so that the network stays the library's own in all else.

    A module around it would put its own name before those of all parameters.
    """

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images ``(B, C, H, W)`` → logits ``(B, K)``."""
        logits: Tensor = super().forward(pixel_values=images, return_dict=True).logits  # type: ignore[misc]
        return logits

    def __reduce__(self) -> tuple[Any, ...]:
        # The class has no place of its own from which it could be imported.
        return _blank, (type(self).__mro__[2],), self.__dict__


def returning_logits(network: nn.Module) -> nn.Module:
    """Change a transformers classifier, in place, into one whose forward maps images to logits.

    The names of its submodules, parameters and buffers stay; copies and pickles of it are the same.
    """
    kind: Any = type(network)
    network.__class__ = _logits_only(kind)
    return network


@cache
def _logits_only(kind: Any) -> type[nn.Module]:
    return type(kind.__name__, (_LogitsOnly, kind), {"__doc__": kind.__doc__, "__module__": kind.__module__})


def _blank(kind: Any) -> Any:
    changed = _logits_only(kind)
    return changed.__new__(changed)
