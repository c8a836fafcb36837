"""Inputs to try networks out with: one that they accept when the user gives none, and one that is not blank."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from blockkd.tracing import undisturbed

# Sides of square images, those at which most networks keep a grid of several places until their last stage first.
SIDES = (64, 32, 224, 28, 16, 8, 96, 128, 256, 299, 240, 384, 448, 512)


def example_for(*networks: nn.Module) -> Tensor:
    """A batch of two random inputs that all networks accept, found by trying.

    The channels are those of the first convolution; without one, a vector as the first linear layer takes it.

    Raises:
        ValueError: none was found.
    """
    parameter = next((p for network in networks for p in network.parameters() if p.is_floating_point()), None)
    tried = _shapes(networks)
    for shape in tried:
        example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        example = example if parameter is None else example.to(parameter)
        if all(_accepts(network, example) for network in networks):
            return example
    names = " and ".join(type(network).__name__ for network in networks)
    raise ValueError(
        f"no input was found that {names} accept (tried {', '.join(map(str, tried)) or 'none'}): give example=, a "
        "batch of inputs"
    )


def random_like(example: Tensor) -> Tensor:
    """Inputs like the example, but not blank as an example may be: on those all places look alike."""
    if not example.is_floating_point():
        return example
    return torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example)


@contextmanager
def zeros_filled(network: nn.Module) -> Iterator[None]:
    """Fill weights that start at zero for a while: behind such a head or gate all networks look alike."""
    generator = torch.Generator().manual_seed(0)
    zeros = [p for p in network.parameters() if p.is_floating_point() and not p.any()]
    for parameter in zeros:
        parameter.copy_(torch.rand(parameter.shape, generator=generator) / 8)
    try:
        yield
    finally:
        for parameter in zeros:
            parameter.zero_()


def _shapes(networks: tuple[nn.Module, ...]) -> list[tuple[int, ...]]:
    modules = [module for network in networks for module in network.modules()]
    for module in modules:
        if isinstance(module, nn.Conv2d):
            return [(module.in_channels, side, side) for side in SIDES]
    for module in modules:
        if isinstance(module, nn.Linear):
            return [(module.in_features,)]
    return []


@torch.no_grad()
def _accepts(network: nn.Module, example: Tensor) -> bool:
    try:
        with undisturbed(network, training=False):
            network(example)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError, AttributeError):
        return False
    return True
