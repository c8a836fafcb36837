"""Weights of losses that change from epoch to epoch."""

import torch
from torch import Tensor, nn


class EpochWeight(nn.Module):
    """A weight that ``set_epoch`` changes.

    It is a number, and where nothing weighs on a loss it need not be computed. In compiled code it is a tensor in
    memory, so that a change compiles nothing anew; there the loss is computed always.

    Args:
        value: what it is at first.
    """

    _tensor: Tensor

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("_tensor", torch.tensor(float(value)), persistent=False)
        self.value = float(value)

    def set(self, value: float) -> None:
        """Change it."""
        self.value = float(value)
        self._tensor.fill_(value)

    def now(self) -> float | Tensor:
        """The weight, to multiply a loss by."""
        return self._tensor if torch.compiler.is_compiling() else self.value

    def counts(self) -> bool:
        """Whether the loss must be computed."""
        return torch.compiler.is_compiling() or self.value != 0


def warmup(epoch: int, epochs: int) -> float:
    """The share of a weight that counts in this epoch (from 0) when it grows linearly over so many: ``(e + 1) / E``."""
    return min((epoch + 1) / epochs, 1.0) if epochs else 1.0
