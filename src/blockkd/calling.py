"""How networks are called: with one tensor, or with named tensors as tokenizers and processors give them."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Size, Tensor, nn

Inputs = Tensor | Mapping[str, Tensor]

# Switches of some forwards, set so that a batch is all that the result hangs on, and that it has names.
_SWITCHES = {"use_cache": False, "return_dict": True}


def logits_of(network: nn.Module, inputs: Inputs, **context: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
    """What a classifier says of a batch.

    Args:
        network: takes the batch and gives logits ``(B, K)``, or an object that holds them as its ``logits``.
        inputs: one tensor ``(B, ...)``, or a mapping of such, which become keyword arguments.
        context: further arguments.

    Returns:
        Logits ``(B, K)``.
    """
    output = (
        network(inputs, **context) if isinstance(inputs, Tensor) else network(**arguments(network, inputs, context))
    )
    logits: Tensor = output if isinstance(output, Tensor) else getattr(output, "logits", output)
    return logits


def arguments(network: nn.Module, inputs: Mapping[str, Tensor], context: Mapping[str, Any]) -> dict[str, Any]:
    """All keyword arguments of a network that takes named tensors: those of the batch, and switches that it knows.

    Teacher and student may take other ones. What a forward does not name among its parameters is not given to it,
    unless it names none of the batch.
    """
    inner = getattr(network, "_orig_mod", network)  # behind torch.compile stands the network itself
    known = signature(type(inner).forward).parameters
    named = {name: value for name, value in inputs.items() if name in known} or dict(inputs)
    return {**named, **{name: value for name, value in _SWITCHES.items() if name in known}, **context}


def first_rows(inputs: Inputs, n: int) -> Any:
    """The first n examples of a batch."""
    return rows(inputs, 0, n)


def rows(inputs: Inputs, start: int, end: int) -> Any:
    """The examples ``start`` … ``end - 1`` of a batch, counted from 0."""
    if isinstance(inputs, Tensor):
        return inputs[start:end]
    return {name: value[start:end] for name, value in inputs.items()}


def count(inputs: Inputs) -> int:
    """How many examples a batch holds."""
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))


def repeated(inputs: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    """A batch several times, one after the other."""
    return {name: torch.cat([value] * times) for name, value in inputs.items()}


def image_shape(inputs: Inputs) -> Size:
    """The shape, with batch, of the tensor that says what the places of a feature are: the image, where there is one.

    Args:
        inputs: a batch; of named tensors the one with four dimensions is the image, else the first one counts.
    """
    if isinstance(inputs, Tensor):
        return inputs.shape
    images = [value.shape for value in inputs.values() if value.ndim == 4]
    return images[0] if images else next(iter(inputs.values())).shape


def resolution(inputs: Inputs) -> Size:
    """The shape ``(...)`` of one input, as far as connectors hang on it; empty for sequences of tokens."""
    shape = image_shape(inputs)
    return shape[1:] if isinstance(inputs, Tensor) or len(shape) == 4 else Size()
