"""A transformer stack as blocks: embeddings and layers grouped into n blocks, and the head (pooler and classifier)."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.blocks import Blocks, PartitionError
from blockkd.calling import Inputs, first_rows, image_shape, logits_of, repeated
from blockkd.cuts import CutPoint
from blockkd.examples import zeros_filled
from blockkd.features import feature_of
from blockkd.stacks import Beside, Stack, StackError, find_stack, grown, run_after, run_before, run_whole
from blockkd.tracing import undisturbed


class Layers(nn.Module):
    """A block: layers ``first + 1 … last`` of a stack, run on the network itself.

    The first block of a network takes the batch: what stands before the layers has then already been run, for the
    context of all blocks.
    """

    def __init__(self, network: nn.Module, stack: Stack, first: int, last: int) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, which nn.Module does not register
        self.stack, self.numbers = stack, range(first, last)
        names = [*(stack.before if first == 0 else ()), *stack.layers[first:last]]
        self.parts = nn.ModuleDict({name.replace(".", "/"): network.get_submodule(name) for name in names})

    def forward(self, x: Inputs, *, beside: Beside) -> Float[Tensor, "B L D"]:
        """A hidden state ``(B, L, D)``, or the batch that ``beside`` belongs to → the hidden state after the block."""
        hidden = x if isinstance(x, Tensor) else self.stack.hidden(beside.calls[0])
        for i in self.numbers:
            layer = self._network[0].get_submodule(self.stack.layers[i])
            hidden = self.stack.called(layer, beside.calls[i], hidden)
        return hidden


class Head(nn.Module):
    """The classifier ``T_c``: all that the network's forward does with the hidden state after its last layer."""

    def __init__(self, network: nn.Module, stack: Stack) -> None:
        super().__init__()
        self._network = (network,)
        self.stack = stack
        inside = {id(p) for name in (*stack.before, *stack.layers) for p in network.get_submodule(name).parameters()}
        rest = {name: p for name, p in network.named_parameters() if id(p) not in inside}
        self.parts = nn.ParameterDict({name.replace(".", "/"): p for name, p in rest.items()})

    def forward(self, hidden: Float[Tensor, "B L D"], *, beside: Beside) -> Float[Tensor, "B K"]:
        """The hidden state after the last layer ``(B, L, D)`` → logits ``(B, K)``."""
        return run_after(self._network[0], self.stack, beside.inputs, beside.context, hidden)


class StackBlocks(Blocks):
    """A network that runs a list of layers, cut after some of them.

    ``run`` and the call are the network's own forward. One block after the other gives the same, with the context of
    the batch beside the hidden state: ``x = block(x, **blocks.beside(inputs))``.

    Args:
        network: takes named tensors.
        stack: where its layers are.
        points: after which layers to cut; the last is the last layer.
        training_error: why the blocks cannot be run in training mode, where they cannot.
    """

    def __init__(
        self, network: nn.Module, stack: Stack, points: Sequence[CutPoint], training_error: str | None = None
    ) -> None:
        self.ends = [point.depth for point in points]
        starts = [0, *self.ends]
        super().__init__(
            [Layers(network, stack, start, end) for start, end in zip(starts, self.ends, strict=False)],
            Head(network, stack),
            features=[point.feature for point in points],
            names=[point.name for point in points],
            network=network,
            training_error=training_error,
        )
        self.stack = stack
        self._growing: dict[str, bool] = {}

    def run(self, x: Inputs, **context: Float[Tensor, "B ..."]) -> tuple[list[Tensor], Float[Tensor, "B K"]]:
        """Hidden states ``(B, L, D)`` after every block, and logits ``(B, K)``."""
        self._check_runnable()
        states, logits = run_whole(self.network, self.stack, x, context)
        return [states[end - 1] for end in self.ends], logits

    def beside(self, x: Inputs, **context: Float[Tensor, "B ..."]) -> dict[str, Any]:
        """What each block and the classifier take beside the hidden states of this batch."""
        if isinstance(x, Tensor):
            raise TypeError(f"{type(self.network).__name__} was cut for named tensors, got one tensor: give a mapping")
        calls = run_before(self.network, self.stack, x, context)
        return {"beside": Beside(x, context, calls, self._grows)}

    def entering(self, x: Inputs, **beside: Any) -> Tensor:
        """The hidden state ``(B, L, D)`` that enters the first layer."""
        del x
        return self.stack.hidden(beside["beside"].calls[0])

    def _grows(self, beside: Beside, place: str) -> bool:
        # Looked at when a tensor is met for the first time: masks are left out of batches without padding.
        if place not in self._growing:
            twice = {name: torch.cat([value] * 2) for name, value in beside.context.items()}
            with torch.no_grad():
                more = run_before(self.network, self.stack, repeated(beside.inputs, 2), twice)
            self._growing |= grown(beside.calls, more)
        return self._growing[place]


class StackSurvey:
    """Where a network that takes named tensors can be cut: after each of its layers.

    Args:
        network: takes named tensors ``(B, ...)`` and gives logits ``(B, K)``.
        example: a batch of them, on the network's device.

    Raises:
        PartitionError: the network does not run a list of layers, or does not accept the example.
    """

    def __init__(self, network: nn.Module, example: Mapping[str, Tensor]) -> None:
        network = getattr(network, "_orig_mod", network)  # behind torch.compile stands the network itself
        self.network, self.label = network, type(network).__name__
        self.example = first_rows(example, 2)
        try:
            with torch.no_grad(), undisturbed(network, training=False):
                self.stack = find_stack(network, self.example, {})
                states, _ = run_whole(network, self.stack, self.example, {})
        except StackError as error:
            raise PartitionError(f"{self.label} cannot be cut by itself: {error}. {_BY_HAND}") from error
        except Exception as error:  # a network's own code runs here, and may raise anything
            shapes = {name: tuple(value.shape) for name, value in self.example.items()}
            reason = str(error).partition("\n")[0]
            raise PartitionError(
                f"{self.label} does not accept an example of {shapes} ({type(error).__name__}: {reason}): give one as "
                "it will see, without labels"
            ) from error
        self.points = [self._point(i, state) for i, state in enumerate(states)]
        self.ends = self.points[-1:]

    def choose(self, n_blocks: int | None = None) -> list[CutPoint]:
        """Cut points for so many blocks of equal numbers of layers, or nearly so; by default one for each layer.

        Raises:
            PartitionError: there are not so many layers.
        """
        total = len(self.points)
        n = total if n_blocks is None else n_blocks
        if not 1 <= n <= total:
            raise PartitionError(f"{self.label} has {total} layers and cannot be cut into {n} blocks")
        return [self.points[(2 * i * total + n) // (2 * n) - 1] for i in range(1, n + 1)]

    def named(self, names: Sequence[str | int]) -> list[CutPoint]:
        """The cut points behind these layers, given by name or by number (1 is the first).

        Raises:
            PartitionError: a layer is unknown or out of order, or the last one is not among them.
        """
        by_name = {point.name: point for point in self.points} | {str(point.depth): point for point in self.points}
        for name in names:
            if str(name) not in by_name:
                near = get_close_matches(str(name), by_name, n=2)
                hint = f", did you mean {' or '.join(map(repr, near))}?" if near else ":"
                raise PartitionError(f"{self.label} has no layer {name!r}{hint} {self.advice()}")
        found = [by_name[str(name)] for name in names]
        depths = [point.depth for point in found]
        if depths != sorted(set(depths)) or depths[-1] != len(self.points):
            raise PartitionError(
                f"{self.label}: the blocks {list(names)} must end in order, and the last of them with the last layer, "
                f"number {len(self.points)}, so that every layer is in a block"
            )
        return found

    def cut(self, points: Sequence[CutPoint], *, frozen: bool = False) -> StackBlocks:
        """Cut after these layers. ``frozen``: for evaluation mode only, as a teacher is used.

        Raises:
            PartitionError: the blocks do not give what the network gives.
        """
        blocks = StackBlocks(self.network, self.stack, points)
        self._check_equal(blocks, training=False)
        if frozen:
            blocks.training_error = "it was cut for evaluation mode only"
        else:
            self._check_equal(blocks, training=True)
        return blocks

    def advice(self) -> str:
        """The cut points that exist."""
        return f"it can be cut after its layers 1 … {len(self.points)}, {self.points[0].name} … {self.points[-1].name}"

    def _point(self, i: int, state: Tensor) -> CutPoint:
        name = self.stack.layers[i]
        feature = feature_of(state.shape, image_shape(self.example))
        if feature is None or state.ndim != 3:
            raise PartitionError(f"{self.label}: {name} gives a tensor {tuple(state.shape)}, expected (B, L, D)")
        return CutPoint(("output", ((name, 0),)), name, feature, i + 1, i + 1, name.count("."), True, (name,))

    def _check_equal(self, blocks: StackBlocks, training: bool) -> None:
        forwards: tuple[Callable[[], Tensor], ...] = (
            lambda: logits_of(self.network, self.example),
            lambda: blocks.run(self.example)[1],
            lambda: one_after_the_other(blocks, self.example),
        )
        results = []
        for forward in forwards:
            with torch.no_grad(), undisturbed(self.network, training), zeros_filled(self.network):
                try:
                    results.append(forward().nan_to_num())
                except Exception as error:  # out of a network's own code
                    raise PartitionError(
                        f"{self.label}: its layers cannot be run one after the other ({type(error).__name__}: "
                        f"{error}). {_BY_HAND}"
                    ) from error
        if not all(torch.equal(result, results[0]) for result in results):
            mode = "training" if training else "evaluation"
            raise PartitionError(
                f"{self.label}: its layers, run one after the other, do not give its logits in {mode} mode: its "
                f"forward does more than that. {_BY_HAND}"
            )


def one_after_the_other(blocks: Blocks, inputs: Inputs, **context: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
    """Logits ``(B, K)`` by running the blocks one by one, instead of the network's own forward."""
    beside = blocks.beside(inputs, **context)
    x: Any = inputs
    for block in blocks.blocks:
        x = block(x, **beside)
    logits: Tensor = blocks.classifier(x, **beside)
    return logits


_BY_HAND = (
    "For an image network give one tensor, or write its blocks down, as "
    "blockkd.Blocks([block_1, ..., block_n], classifier)"
)
