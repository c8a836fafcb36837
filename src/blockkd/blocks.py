"""A network as n runnable blocks and a classifier (the paper's ``T = T_c ∘ T_n ∘ … ∘ T_1``)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.calling import Inputs, image_shape
from blockkd.features import Feature, feature_of
from blockkd.segments import Segment
from blockkd.tracing import undisturbed


class PartitionError(ValueError):
    """A network cannot be cut as asked; the message says what is in the way and which call would work."""


class Block(nn.Module):
    """One stretch of a network's forward, run on the network itself.

    Nothing is copied: the code looks every submodule, parameter and buffer up in the network at the moment it
    runs, so that moving, loading or replacing parts of the network is seen here. Those used are registered as
    well, under their names in the network, for ``parameters()``, ``state_dict()`` and ``train()``.
    """

    def __init__(self, network: nn.Module, training: Segment, evaluation: Segment) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, which nn.Module does not register
        self._segments = {True: training, False: evaluation}
        self._run = {mode: segment.function() for mode, segment in self._segments.items()}
        self._targets = sorted(training.targets() | evaluation.targets())
        self.refresh()

    def forward(self, x: Tensor) -> Tensor:
        network = self._network[0]
        return self._run[network.training](network, x)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_run"}  # compiled code: made again

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._run = {mode: segment.function() for mode, segment in self._segments.items()}

    def refresh(self) -> None:
        """Register what the network holds now."""
        for target in self._targets:
            *path, name = target.split(".")
            owner, view = self._network[0], self
            for part in path:
                owner = owner.get_submodule(part)
                if part not in view._modules:
                    view.add_module(part, nn.Module())
                view = view.get_submodule(part)  # type: ignore[assignment]
            for kind in ("_modules", "_parameters", "_buffers"):
                if name in getattr(owner, kind):
                    getattr(view, kind)[name] = getattr(owner, kind)[name]


class Blocks(nn.Module):
    """A network as n blocks and a classifier: ``classifier(blocks[n-1](… blocks[0](x)))``.

    ``partition`` makes one. Make it by hand for a network that cannot be traced: any modules will do that, run one
    after the other, are the network. Per-batch context (an attention mask, say) travels beside the hidden state:
    keyword arguments given to the network are handed to every block and to the classifier.

    Args:
        blocks: n modules ``(B, ...) → (B, ...)``.
        classifier: everything after the last block, ``(B, ...) → (B, K)``.
        features: what each block gives; ``BlockKD`` measures it when left out, and compares the blocks with the
            network. Give them for blocks that need context: ``blocks.features = blocks.measure(x, mask=mask)``.
        names: after which submodule or operation each block ends.
        network: the network behind the blocks, where there is one.
        training_error: why the blocks cannot be run in training mode, where they cannot.
        only_for: the shape ``(...)`` of one input for which alone the blocks hold, where they hold sizes of it.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        classifier: nn.Module,
        *,
        features: Sequence[Feature] = (),
        names: Sequence[str] = (),
        network: nn.Module | None = None,
        training_error: str | None = None,
        only_for: torch.Size | None = None,
    ) -> None:
        super().__init__()
        if not blocks:
            raise PartitionError("Blocks needs at least one block beside the classifier, got none")
        self.blocks = nn.ModuleList(blocks)
        self.classifier = classifier
        self.features = tuple(features)
        self.names = tuple(names) or tuple(f"blocks.{i}" for i in range(len(blocks)))
        self._network = (network,)
        self.training_error = training_error
        self.only_for = only_for

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def network(self) -> nn.Module:
        """The network behind the blocks; the blocks themselves where they were made by hand."""
        return self if self._network[0] is None else self._network[0]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of the feature after each block, without the batch dimension."""
        return tuple(feature.shape for feature in self.features)

    def run(self, x: Inputs, **context: Float[Tensor, "B ..."]) -> tuple[list[Tensor], Float[Tensor, "B K"]]:
        """Features after every block, and logits ``(B, K)``."""
        self._check_runnable()
        if self.only_for is not None and image_shape(x)[1:] != self.only_for:
            raise PartitionError(
                f"{type(self.network).__name__} was cut for inputs {tuple(self.only_for)} and holds sizes of them, got "
                f"{tuple(image_shape(x)[1:])}: partition it with such an example"
            )
        features: list[Tensor] = []
        beside = self.beside(x, **context)
        for block in self.blocks:
            features.append(block(features[-1] if features else x, **beside))
        return features, self.classifier(features[-1], **beside)

    def beside(self, x: Inputs, **context: Float[Tensor, "B ..."]) -> dict[str, Any]:
        """What each block and the classifier take beside the features of this batch: here its context as it is."""
        del x
        return context

    def entering(self, x: Inputs, **beside: Any) -> Any:
        """What of a batch enters the first block; where something is run for all blocks before it, what that gives."""
        del beside
        return x

    def forward(self, x: Inputs, **context: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
        """The network's logits ``(B, K)``."""
        return self.run(x, **context)[1]

    @torch.no_grad()
    def measure(self, x: Inputs, **context: Float[Tensor, "B ..."]) -> tuple[Feature, ...]:
        """Look at the features of ``x`` in evaluation mode, leaving the network as it was."""
        with undisturbed(self.network, training=False):
            values, _ = self.run(x, **context)
        found = []
        for name, value in zip(self.names, values, strict=True):
            feature = feature_of(value.shape, image_shape(x))
            if feature is None:
                raise PartitionError(
                    f"block {name!r} gives a tensor of shape {tuple(value.shape)}: expected (B, C, H, W), (B, L, D) "
                    "or (B, D)"
                )
            found.append(feature)
        return tuple(found)

    def _check_runnable(self) -> None:
        if self.training_error is not None and self.network.training:
            raise PartitionError(self.training_error)

    def train(self, mode: bool = True) -> "Blocks":
        """Switch the blocks and the network behind them."""
        super().train(mode)
        if self._network[0] is not None:
            self._network[0].train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Blocks":
        if self._network[0] is None:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return self
        self._network[0]._apply(fn, recurse)
        for block in (*self.blocks, self.classifier):
            if isinstance(block, Block):
                block.refresh()
        return self
