"""A network with other modules in some of its places, while all the rest stays the same objects."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


def view(network: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """The network with these submodules replaced. Nothing is copied, and the network itself stays as it is.

    Only the modules on the way to a replaced one are new objects, with the same parameters, buffers, hooks and
    attributes as they have at this moment; so a view is made when it is needed and not kept.

    Args:
        network: what is viewed.
        replaced: other modules, by the names of those whose places they take.
    """
    if "" in replaced:
        return replaced[""]
    twin: nn.Module = type(network).__new__(type(network))
    twin.__dict__.update(network.__dict__)
    twin.__dict__["_compiled_call_impl"] = None  # is bound to the network, so would not see what is replaced
    children = dict(network._modules)
    for child in {name.partition(".")[0] for name in replaced}:
        inside = {
            name.partition(".")[2]: module for name, module in replaced.items() if name.partition(".")[0] == child
        }
        children[child] = view(network.get_submodule(child), inside)
    twin.__dict__["_modules"] = children
    return twin


class StandIn(nn.Module):
    """Takes a module's place in a view.

    Args:
        original: the module; what is asked of the stand-in's attributes is its.
        act: what is done instead of its forward.
    """

    def __init__(self, original: nn.Module, act: Callable[..., Any]) -> None:
        super().__init__()
        self._original = (original,)  # in a tuple, which nn.Module does not register
        self._act = act

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What is done instead."""
        return self._act(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._original[0], name)
