"""A network's logits under weights and an image that are the same on every machine.

No random number generator is involved: the numbers come from integer arithmetic and float64.
"""

from math import prod

import torch
from torch import Tensor, nn

MULTIPLIER, MODULUS = 2654435761, 2**32


def even_numbers(shape: tuple[int, ...], start: int) -> Tensor:
    """Numbers of ``shape`` that fill (-1, 1) evenly, in float64; another ``start`` gives others."""
    places = torch.arange(1, prod(shape) + 1, dtype=torch.int64) + 7919 * start
    return ((places * MULTIPLIER % MODULUS).double() / MODULUS * 2 - 1).reshape(shape)


def set_weights(network: nn.Module) -> None:
    """Give every tensor of ``network`` its fixed value, in the order of the sorted names."""
    state = network.state_dict()
    for start, name in enumerate(sorted(state)):
        value = state[name]
        numbers = even_numbers(tuple(value.shape), start)
        if name.endswith("num_batches_tracked"):
            continue
        if value.ndim > 1:
            value.copy_(numbers * (3 / prod(value.shape[1:])) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            value.copy_(1 + 0.5 * numbers)
        else:
            value.copy_(0.2 * numbers)


@torch.no_grad()
def fingerprint(network: nn.Module, size: int = 32) -> tuple[float, float, float]:
    """The first logit, the last, and the length of the vector of logits, for one image ``(1, 3, size, size)``."""
    network.double().eval()
    set_weights(network)
    logits: Tensor = network(2 * even_numbers((1, 3, size, size), 1))
    return float(logits[0, 0]), float(logits[0, -1]), float(logits.norm())
