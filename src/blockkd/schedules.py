"""Weights of losses that change from epoch to epoch, and a learning rate that changes from step to step."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


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


class LinearWarmup(LRScheduler):
    """A learning rate that rises linearly from 0 over the first steps, and falls linearly to 0 over all others.

    Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
    arXiv 1810.04805, appendix A.2. It is stepped after each optimizer step; ``DistillationModule`` tells it how many
    there are.

    Args:
        optimizer: whose learning rates are the highest ones.
        warmup: the share of all steps in which it rises, 0 ≤ w < 1.
        steps: of the whole training; must be known before the first step.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1, steps: int | None = None) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is {warmup}, expected a share of all steps: 0 … less than 1")
        self.warmup, self.steps = warmup, steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the step that comes next."""
        return [rate * self.share(self.last_epoch) for rate in self.base_lrs]

    def share(self, step: int) -> float:
        """The share of the highest learning rate in this step, counted from 0."""
        if step == 0 or self.steps is None:
            return 0.0 if self.warmup else 1.0
        rising = self.warmup * self.steps
        return step / rising if step < rising else max(0.0, (self.steps - step) / (self.steps - rising))
