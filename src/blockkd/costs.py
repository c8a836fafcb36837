"""What a network costs: parameters, and floating-point operations per input."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(network: nn.Module) -> int:
    """The number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def flops(network: nn.Module, example: Tensor) -> int:
    """Floating-point operations of one forward pass for one input, a multiply-add counted as two.

    Counted by ``torch.utils.flop_counter``: convolutions, matrix products and attention; what is neither
    (batch norm, activations, additions) costs nothing there.

    Args:
        network: put into evaluation mode for the count, and back after it.
        example: a batch of inputs ``(B, ...)``.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            network(example)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops()) // len(example)
