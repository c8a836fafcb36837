"""The layer that gives a network's logits, what goes into it, and the map of which that is the mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.blocks import Blocks
from blockkd.connectors import to_maps
from blockkd.cuts import CutPoint
from blockkd.examples import random_like
from blockkd.partitioning import Survey
from blockkd.tracing import undisturbed

LAST_POINTS = 8  # the map before pooling is looked for among so many cut points from the end


class Head:
    """The layer that gives a network's logits; its input is the network's embedding of an example.

    Where a network pools, normalises or picks a class token after its last block, the embedding comes after
    that: it is what the field calls the penultimate feature. The layer is looked up by name each time, and
    watched only while the network runs, so the network itself stays as it is.

    Args:
        network: the network.
        name: the layer's name in it. When left out, it is the linear layer whose output the logits are on ``example``.
        example: a batch of inputs ``(B, ...)``. Without it and without a name the last ``nn.Linear`` is taken, and
            whether the logits come from there is checked as the network runs.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, network: nn.Module, name: str | None = None, example: Tensor | None = None) -> None:
        known = dict(network.named_modules())
        linear = [each for each, module in known.items() if isinstance(module, nn.Linear)]
        if name is not None and name not in known:
            raise ValueError(f"{type(network).__name__} has no layer {name!r}; its linear layers are {linear}")
        if name is None and not linear:
            raise ValueError(
                f"{type(network).__name__} has no linear layer, so where its embedding is cannot be told: name the "
                "layer that gives the logits (teacher_head, student_head), or use a method that needs no such layer"
            )
        self.guessed = name is None and example is None
        if name is None:
            name = linear[-1] if example is None else _giving_the_logits(network, linear, example)
        self.name = name

    def linear(self, network: nn.Module) -> nn.Linear:
        """The layer itself.

        Raises:
            ValueError: it is not linear.
        """
        layer = network.get_submodule(self.name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"layer {self.name!r} is a {type(layer).__name__}, expected an nn.Linear")
        return layer

    @contextmanager
    def watched(self, network: nn.Module) -> Iterator[list[Tensor]]:
        """While ``network`` runs inside, the inputs of its head are appended to the list given."""
        inputs: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.append(args[0])

        handle = network.get_submodule(self.name).register_forward_pre_hook(keep)
        try:
            yield inputs
        finally:
            handle.remove()

    def embedding(self, network: nn.Module, inputs: list[Tensor], logits: Float[Tensor, "B K"]) -> Float[Tensor, "B D"]:
        """The embeddings ``(B, D)``, of what was kept while the network ran.

        Raises:
            ValueError: the layer took no part, or is not the one behind the logits.
        """
        found = [len(x) for x in inputs]
        if found != [len(logits)]:
            raise ValueError(
                f"layer {self.name!r} of {type(network).__name__} was expected to run once, on a batch of "
                f"{len(logits)}, but ran on batches of {found}: name the layer that gives the logits "
                "(teacher_head, student_head)"
            )
        outputs = getattr(network.get_submodule(self.name), "out_features", None)
        if self.guessed and outputs != logits.shape[1]:
            raise ValueError(
                f"layer {self.name!r}, the last linear one of {type(network).__name__}, gives {outputs} values, but "
                f"there are {logits.shape[1]} logits: name the layer that gives them (teacher_head, student_head)"
            )
        return inputs[0].flatten(1)


def cut_before_pooling(network: nn.Module, head: Head, example: Tensor, *, frozen: bool = False) -> Blocks:
    """Cut a network once: everything up to its last map, and global average pooling with one linear layer.

    The map is told by its value: its mean over the places is what the linear layer gets.

    Args:
        network: maps one tensor to logits ``(B, K)``.
        head: its last layer.
        example: a batch of inputs ``(B, ...)``.
        frozen: the network stays in evaluation mode, as a teacher does.

    Raises:
        ValueError: the network does not end so, or cannot be cut there.
    """
    width = head.linear(network).in_features
    survey = Survey(network, example)
    last = survey.points[-LAST_POINTS:]
    points = [p for p in last if p.feature.layout in ("CHW", "HWC") and p.feature.channels == width]
    found = _pooled(network, head, example, survey, points) if points else None
    if found is None:
        tried = ", ".join(f"{point.name} ({point.feature})" for point in points) or "none has as many channels"
        raise ValueError(
            f"{type(network).__name__} does not end in global average pooling and one linear layer: no map averaged "
            f"over its places is what the layer with {width} inputs gets (looked at: {tried}); use a method that does "
            "not need this form"
        )
    return survey.cut([found], frozen=frozen)


def _pooled(network: nn.Module, head: Head, example: Tensor, survey: Survey, points: list[CutPoint]) -> CutPoint | None:
    """The last of these points whose map, averaged over its places, goes into the head."""
    blocks = survey.cut(points, frozen=True)
    with torch.no_grad(), undisturbed(network, training=False), head.watched(network) as inputs:
        values, _ = blocks.run(random_like(example))
    for point, value in reversed(list(zip(points, values, strict=True))):
        average = to_maps(value, point.feature).mean(dim=(2, 3))
        if inputs[-1].shape == average.shape and torch.allclose(average, inputs[-1], rtol=1e-4, atol=1e-6):
            return point
    return None


def _giving_the_logits(network: nn.Module, linear: list[str], example: Tensor) -> str:
    """The linear layer whose output the network's logits are."""
    outputs: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:
        return lambda _, __, output: outputs.append((name, output))

    handles = [network.get_submodule(name).register_forward_hook(note(name)) for name in linear]
    try:
        with torch.no_grad(), undisturbed(network, training=False):
            logits = network(random_like(example))
    finally:
        for handle in handles:
            handle.remove()
    if not torch.isfinite(logits).all():
        raise ValueError(
            f"{type(network).__name__} gives logits that are not finite, so which layer gives them cannot be told: "
            "look at its weights and running statistics"
        )
    for name, output in reversed(outputs):
        if output.shape == logits.shape and torch.equal(output, logits):
            return name
    raise ValueError(
        f"{type(network).__name__} gives logits that are not the output of one linear layer (its linear layers are "
        f"{linear}): name the layer that gives them (teacher_head, student_head) where the method takes a name, or use "
        "a method that needs no such layer"
    )
