"""A network as a function of named tensors: what exporters trace, and the inputs to trace and to check it with."""

from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from blockkd.calling import Inputs, count, logits_of

IMAGES, LOGITS = "images", "logits"
BATCH, LENGTH = "batch", "length"
WRAPPED = "network."  # before the names of a network that had to be wrapped

KINDS = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}

Named = dict[str, Shaped[Tensor, "B ..."]]


def named(inputs: Inputs) -> Named:
    """The tensors of a batch by name; a single tensor is called ``images``."""
    return {IMAGES: inputs} if isinstance(inputs, Tensor) else dict(inputs)


def call(network: nn.Module, inputs: Inputs) -> Float[Tensor, "B K"]:
    """Logits ``(B, K)`` in evaluation mode and without gradient."""
    with torch.no_grad():
        return logits_of(network.eval(), inputs)


def as_function(network: nn.Module, inputs: Inputs) -> nn.Module:
    """A module that takes the batch and returns a tensor of logits: the network itself where it does so.

    One that takes named tensors, or returns an object, stands in another that takes each tensor under its name; then
    its parameters have ``network.`` before their names.
    """
    with torch.no_grad():
        if isinstance(inputs, Tensor) and isinstance(network.eval()(inputs), Tensor):
            return network
    return _with_names(network, list(named(inputs)), single=isinstance(inputs, Tensor)).eval()


def dynamic(inputs: Inputs) -> dict[str, dict[int, str]]:
    """Which sizes may change, for each tensor: the batch, and of sequences the length."""
    if isinstance(inputs, Tensor):
        return {IMAGES: {0: BATCH}}
    sequences = {name for name, tensor in inputs.items() if tensor.ndim == 2 and not tensor.is_floating_point()}
    return {name: {0: BATCH, 1: LENGTH} if name in sequences else {0: BATCH} for name in inputs}


def to_trace(inputs: Inputs) -> Inputs:
    """Two inputs of the same kinds and sizes that say nothing of any data: exported programs keep them."""
    generator = torch.Generator().manual_seed(0)

    def like(tensor: Tensor) -> Tensor:
        size = (2, *tensor.shape[1:])
        if tensor.is_floating_point():
            return torch.randn(size, generator=generator).to(tensor.dtype)
        return torch.ones(size, dtype=tensor.dtype)  # a token that every vocabulary has, and nothing masked

    return like(inputs) if isinstance(inputs, Tensor) else {name: like(tensor) for name, tensor in inputs.items()}


def length_of(inputs: Inputs) -> int | None:
    """How many tokens the sequences in a batch have, padding among them; None where there are none."""
    places = dynamic(inputs)
    return next((tensor.shape[1] for name, tensor in named(inputs).items() if 1 in places[name]), None)


def to_check(inputs: Inputs, batch: int, seed: int = 0, share: float = 1.0) -> Inputs:
    """Inputs for a comparison: random numbers, or whole numbers as they stand in ``inputs``; ``batch`` of them.

    Of sequences whole rows are drawn, the same of all tensors, so that tokens and what masks them belong together.

    Args:
        inputs: a batch.
        batch: how many are made.
        seed: of what is drawn.
        share: to which part of their length sequences are cut, at the end that holds the padding.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(count(inputs), (batch,), generator=generator)
    places, from_left = dynamic(inputs), _padded_on_the_left(inputs)

    def like(name: str, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn((batch, *tensor.shape[1:]), generator=generator).to(tensor.dtype)
        if 1 not in places[name]:
            return tensor[rows]
        length = max(int(share * tensor.shape[1]), 1)
        return tensor[rows, -length:] if from_left else tensor[rows, :length]

    if isinstance(inputs, Tensor):
        return like(IMAGES, inputs)
    return {name: like(name, tensor) for name, tensor in inputs.items()}


def sizes(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Shape and kind of each tensor, as plain data."""
    return {
        name: {"shape": list(tensor.shape), "kind": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in named(inputs).items()
    }


def of_sizes(found: Mapping[str, Mapping[str, Any]]) -> Inputs:
    """A batch of what ``sizes`` gave: numbers of which nothing but their shapes counts."""
    made = {
        str(name): torch.ones(tuple(map(int, each["shape"])), dtype=KINDS[str(each["kind"])])
        for name, each in found.items()
    }
    return made[IMAGES] if list(made) == [IMAGES] else made


def _padded_on_the_left(inputs: Inputs) -> bool:
    mask = None if isinstance(inputs, Tensor) else inputs.get("attention_mask")
    return mask is not None and not bool(mask[:, 0].all())


class _Function(nn.Module):
    def __init__(self, network: nn.Module, names: list[str], single: bool) -> None:
        super().__init__()
        self.network, self._names, self._single = network, names, single

    def forward(self, *tensors: Tensor, **by_name: Tensor) -> Tensor:
        given = dict(zip(self._names, tensors, strict=False)) | by_name
        inputs: Inputs = given[IMAGES] if self._single else given
        return logits_of(self.network, inputs)


def _with_names(network: nn.Module, names: list[str], single: bool) -> nn.Module:
    """Its forward has each tensor as an argument of its own: torch.export reads the signature, and keeps it."""

    def forward(self: Any, *tensors: Tensor, **by_name: Tensor) -> Tensor:
        return _Function.forward(self, *tensors, **by_name)

    arguments = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    forward.__signature__ = Signature(arguments)  # type: ignore[attr-defined]
    kind: Any = type("Classifier", (_Function,), {"forward": forward})
    made: nn.Module = kind(network, names, single)
    return made


def tensors_of(network: nn.Module) -> Mapping[str, Tensor]:
    """Everything that a network is made of: parameters and all buffers, also those that are not saved, by name."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(network.named_buffers(remove_duplicate=False))}
