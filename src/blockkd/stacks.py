"""Networks that run a list of layers one after the other on a hidden state, as transformers do.

What the layers need beside the hidden state (attention mask, positions, rotary tables) is made once per batch by the
network's own code and handed to each of them. So nothing has to be known of a family: its forward is run with stand-ins
in the places of the layers, which note what they are called with, or give a hidden state back to what follows.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from blockkd.calling import Inputs, arguments, logits_of
from blockkd.views import StandIn, view

Call = tuple[tuple[Any, ...], dict[str, Any]]


class StackError(ValueError):
    """A network does not run a list of layers one after the other; the message says what it does instead."""


@dataclass(frozen=True)
class Stack:
    """Where the layers of a network are, and how it calls them.

    Attributes:
        layers: their names, in order.
        slot: the argument that is the hidden state, by its place or its name.
        width: how many values a layer returns, the hidden state first; None where it returns the hidden state alone.
        before: the modules that give something of the hidden state's form before the first layer (embeddings, their
            projection). Of what runs after the last layer nothing needs them.
    """

    layers: tuple[str, ...]
    slot: int | str
    width: int | None
    before: tuple[str, ...]

    def hidden(self, call: Call) -> Tensor:
        """The hidden state that a layer is called with."""
        args, kwargs = call
        value: Tensor = args[self.slot] if isinstance(self.slot, int) else kwargs[self.slot]
        return value

    def called(self, layer: nn.Module, call: Call, hidden: Tensor) -> Tensor:
        """What a layer makes of a hidden state ``(B, L, D)``, called as before in all else."""
        args, kwargs = list(call[0]), dict(call[1])
        if isinstance(self.slot, int):
            args[self.slot] = hidden
        else:
            kwargs[self.slot] = hidden
        return self.first(layer(*args, **kwargs))

    def first(self, returned: Any) -> Tensor:
        """The hidden state among what a layer returned."""
        value: Tensor = returned if self.width is None else returned[0]
        return value

    def returned(self, hidden: Tensor) -> Any:
        """A hidden state as a layer returns it; what a layer says beside it is left out."""
        return hidden if self.width is None else (hidden, *[None] * (self.width - 1))


def run_whole(
    network: nn.Module,
    stack: Stack,
    inputs: Inputs,
    context: Mapping[str, Any],
    run: Callable[[int, nn.Module, Call], Any] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The network's own forward → the hidden states ``(B, L, D)`` after each layer, and its logits ``(B, K)``.

    Args:
        network: the network.
        stack: where its layers are.
        inputs: a batch.
        context: further arguments.
        run: (number from 1, layer, how it is called) → what the layer returns, for who looks inside; calls the layer.
    """
    states: list[Tensor] = []

    def act(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        returned = layer(*args, **kwargs) if run is None else run(len(states) + 1, layer, (args, kwargs))
        states.append(stack.first(returned))
        return returned

    logits = logits_of(_with_stand_ins(network, stack, act), inputs, **context)
    _check_seen(network, stack, len(states))
    return states, logits


def run_before(
    network: nn.Module, stack: Stack, inputs: Mapping[str, Tensor], context: Mapping[str, Any]
) -> list[Call]:
    """What the network calls each of its layers with; none of them is run, nor what follows them.

    The hidden state of all these calls is the one that enters the first layer, ``(B, L, D)``.
    """
    calls: list[Call] = []

    def act(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        del layer
        calls.append((args, kwargs))
        if len(calls) == len(stack.layers):
            raise _Seen
        return stack.returned(stack.hidden(calls[-1]))

    with suppress(_Seen):
        logits_of(_with_stand_ins(network, stack, act), inputs, **context)
    _check_seen(network, stack, len(calls))
    return calls


def run_after(
    network: nn.Module, stack: Stack, inputs: Mapping[str, Tensor], context: Mapping[str, Any], hidden: Tensor
) -> Tensor:
    """Logits ``(B, K)`` from the hidden state after the last layer ``(B, L, D)``; none of the layers is run."""

    def act(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        del layer, args, kwargs
        return stack.returned(hidden)

    def embed(*args: Any, **kwargs: Any) -> Tensor:
        del args, kwargs
        return hidden

    embeddings = {name: StandIn(network.get_submodule(name), embed) for name in stack.before}
    return logits_of(_with_stand_ins(network, stack, act, embeddings), inputs, **context)


def find_stack(network: nn.Module, inputs: Mapping[str, Tensor], context: Mapping[str, Any]) -> Stack:
    """Find the layers by following one forward.

    Args:
        network: in evaluation mode, without gradients.
        inputs: a batch.
        context: further arguments.

    Raises:
        StackError: there is no list of layers of which each gets what the one before gave.
    """
    lists = {name: module for name, module in network.named_modules() if isinstance(module, nn.ModuleList) and module}
    names = {f"{name}.{i}": name for name, module in lists.items() for i in range(len(module))}
    heard = _listen(network, inputs, context)
    found: list[tuple[int, Stack]] = []
    for name in lists:
        calls = [call for call in heard if names.get(call.name) == name]
        slot = _slot(calls)
        if slot is not None and [call.name for call in calls] == [f"{name}.{i}" for i in range(len(lists[name]))]:
            width = None if isinstance(calls[0].returned, Tensor) else len(calls[0].returned)
            stack = Stack(tuple(call.name for call in calls), slot, width, _before(heard, calls[0], slot))
            found.append((sum(p.numel() for p in lists[name].parameters()), stack))
    if not found:
        raise StackError(
            "its forward runs no list of layers (nn.ModuleList) of which each gets the hidden state as the one before "
            f"gave it; its lists are {sorted(lists) or 'none'}"
        )
    stack = max(found, key=lambda pair: pair[0])[1]
    patched = [name for name in _ancestors(stack) if "forward" in network.get_submodule(name).__dict__]
    if patched:
        raise StackError(f"the forward of {patched[0] or 'the network'!r} was replaced by hand: cut it before that")
    return stack


class _Seen(BaseException):
    """Leaves a forward of which the rest is not needed. No Exception, so that nobody takes it for a fault."""


@dataclass
class _Heard:
    name: str
    call: Call
    returned: Any


def _with_stand_ins(
    network: nn.Module, stack: Stack, act: Callable[..., Any], others: Mapping[str, nn.Module] | None = None
) -> nn.Module:
    layers = {name: network.get_submodule(name) for name in stack.layers}
    stand_ins = {name: StandIn(layer, partial(act, layer)) for name, layer in layers.items()}
    return view(network, {**stand_ins, **(others or {})})


def _check_seen(network: nn.Module, stack: Stack, seen: int) -> None:
    if seen != len(stack.layers):
        raise StackError(
            f"{type(network).__name__} ran {seen} of its {len(stack.layers)} layers: its forward was replaced (as "
            "tools for mixed precision do), or takes another way than when it was cut; cut the network before that"
        )


def _listen(network: nn.Module, inputs: Mapping[str, Tensor], context: Mapping[str, Any]) -> list[_Heard]:
    """All calls of submodules, in the order in which they ended."""
    heard: list[_Heard] = []

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
        del module
        heard.append(_Heard(name, (args, kwargs), returned))

    hooks = [
        module.register_forward_hook(partial(note, name), with_kwargs=True)
        for name, module in network.named_modules()
        if name
    ]
    try:
        network(**arguments(network, inputs, context))
    finally:
        for hook in hooks:
            hook.remove()
    return heard


def _slot(calls: Sequence[_Heard]) -> int | str | None:
    """Which argument of each call is what the call before returned."""
    if not calls:
        return None
    places: list[int | str] = [*range(len(calls[0].call[0])), *calls[0].call[1]]
    for place in places:
        taken = [_argument(call, place) for call in calls]
        given = [call.returned if isinstance(call.returned, Tensor) else _head(call.returned) for call in calls]
        hidden = isinstance(taken[0], Tensor) and taken[0].is_floating_point() and isinstance(given[-1], Tensor)
        if hidden and all(a is b for a, b in zip(taken[1:], given, strict=False)):
            return place
    return None


def _argument(heard: _Heard, place: int | str) -> Any:
    args, kwargs = heard.call
    if isinstance(place, str):
        return kwargs.get(place)
    return args[place] if place < len(args) else None


def _head(returned: Any) -> Any:
    return returned[0] if isinstance(returned, tuple) and returned else None


def _before(heard: Sequence[_Heard], first: _Heard, slot: int | str) -> tuple[str, ...]:
    """Modules beside the layers' ancestors that gave, only before the first layer, a tensor like the hidden state."""
    hidden = _argument(first, slot)
    parents = {".".join(first.name.split(".")[:depth]) for depth in range(len(first.name.split(".")) - 1)}
    # A call ends before those around it: whatever the first layer ran inside comes before it here, but not beside.
    start = heard.index(first)
    late = {call.name for call in heard[start:]}
    return tuple(
        dict.fromkeys(
            call.name
            for call in heard[:start]
            if call.name.rpartition(".")[0] in parents
            and call.name not in late
            and isinstance(call.returned, Tensor)
            and call.returned.is_floating_point()
            and call.returned.shape[:-1] == hidden.shape[:-1]
        )
    )


def _ancestors(stack: Stack) -> list[str]:
    parts = stack.layers[0].split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def grown(calls: Sequence[Call], more: Sequence[Call]) -> dict[str, bool]:
    """Which of the tensors that layers are called with grow with the batch.

    Args:
        calls: of a batch.
        more: of that batch twice.

    Returns:
        By the place of each tensor, whether it has twice as many rows in ``more``.
    """
    pairs = zip(pytree.tree_leaves_with_path(list(calls)), pytree.tree_leaves_with_path(list(more)), strict=True)
    return {
        pytree.keystr(path): isinstance(b, Tensor) and a.shape != b.shape
        for (path, a), (_, b) in pairs
        if isinstance(a, Tensor)
    }


@dataclass(frozen=True)
class Beside:
    """What belongs to one batch beside the hidden state: how each layer is called, and what the head reads.

    Attributes:
        inputs: the batch itself.
        context: further arguments of the network.
        calls: what each layer is called with.
        growing: which tensors of a call have a row for each example, by their places.
    """

    inputs: Mapping[str, Tensor]
    context: Mapping[str, Any]
    calls: Sequence[Call]
    growing: Callable[["Beside", str], bool]

    def repeated(self, times: int) -> "Beside":
        """The same for the batch so many times, one after the other."""
        if times == 1:
            return self
        done: dict[int, Tensor] = {}  # layers share most of what they are called with

        def longer(path: pytree.KeyPath, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) not in done:
                grows = self.growing(self, pytree.keystr(path))
                done[id(value)] = torch.cat([value] * times) if grows else value
            return done[id(value)]

        inputs = {name: torch.cat([value] * times) for name, value in self.inputs.items()}
        context = pytree.tree_map_only(Tensor, lambda value: torch.cat([value] * times), dict(self.context))
        calls = pytree.tree_map_with_path(longer, list(self.calls))
        return Beside(inputs, context, calls, self.growing)
