"""Several processes that train together (ranks): what of a step must be seen by all of them at once.

A Distiller that trains in R processes, each on its rows of the batch, is to learn what it learns in one process from
the whole batch. Whoever trains averages the gradients of the ranks, as DistributedDataParallel does; so the objective
is ``1/R · Σ_r L_r``, L_r the loss of rank r. All here is the exact derivative of ``Σ_r L_r``: then a loss that is a
mean over samples needs nothing, one that compares samples with each other is computed by every rank on all rows
(``gathered``), and batch norm normalises by the mean and variance of all.

Ranks take turns in the order of the samples: row j of rank r is row ``j·R + r`` of the one process's batch, as
``blockkd.data`` hands them out. All ranks have as many rows, and take the same steps at the same time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_together = False  # whether this is inside of across_ranks: only there all ranks are sure to be
_alone = False  # whether this is inside of alone


@contextmanager
def across_ranks(wanted: bool = True) -> Iterator[None]:
    """A context in which the functions here look across all ranks, and batch norm normalises by all of them.

    Outside of it, and in a single process, everything looks at its own rows only: no rank waits for another.

    Args:
        wanted: False makes it a context without other ranks, whatever it lies in.
    """
    global _together
    before, _together = _together, wanted and not _alone and world_size() > 1
    try:
        if _together and not before:
            with _BatchNormOfAll():
                yield
        else:
            yield
    finally:
        _together = before


@contextmanager
def alone() -> Iterator[None]:
    """A context in which a step is that of a single process, although there are others: to measure what it costs."""
    global _alone
    before, _alone = _alone, True
    try:
        with across_ranks(False):
            yield
    finally:
        _alone = before


def world_size() -> int:
    """How many processes there are, whether or not they are at the same step."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of ``world_size`` processes this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def ranks() -> int:
    """R, how many processes share this step; 1 outside of ``across_ranks``."""
    return world_size() if _together else 1


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the one process's batch.

    Args:
        rows: this rank's, ``(B / R, ...)``.

    Returns:
        ``(B, ...)``, on every rank the same; ``rows`` itself in a single process.
    """
    if ranks() == 1:
        return rows
    result: Tensor = _Gathered.apply(rows)
    return result


def own_rows(rows: Tensor) -> Tensor:
    """Of the rows of the one process's batch ``(B, ...)`` those of this rank, ``(B / R, ...)``."""
    return rows if ranks() == 1 else rows[rank() :: ranks()]


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, without gradient."""
    if ranks() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def of_first_rank(values: Tensor) -> Tensor:
    """What the first rank has, on every rank the same; without gradient."""
    if ranks() == 1:
        return values
    values = values.detach().clone()
    dist.broadcast(values, src=0)
    return values


class _Gathered(Function):
    """Its derivative: of all that the ranks' losses say about this rank's rows, the sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        del ctx
        return _of_each(rows).transpose(0, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        of_all = gradients[0].unflatten(0, (-1, dist.get_world_size())).transpose(0, 1).contiguous()
        own = torch.empty_like(of_all[0])
        dist.reduce_scatter_tensor(own, of_all.flatten(0, 1))
        return own


def _of_each(values: Tensor) -> Tensor:
    """``(N, ...)`` of each rank → ``(R, N, ...)``."""
    of_all = values.new_empty(dist.get_world_size() * len(values), *values.shape[1:])
    dist.all_gather_into_tensor(of_all, values.contiguous())
    return of_all.unflatten(0, (-1, len(values)))


class _BatchNormOfAll(TorchFunctionMode):
    """Batch norm by the statistics of all ranks' rows, wherever it is called: no module is converted for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm and ranks() > 1:
            return _batch_norm(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    func: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    result: Tensor = _BatchNorm.apply(input, running_mean, running_var, weight, bias, momentum, eps)
    return result


class _BatchNorm(Function):
    """``y = x̂ · γ + β`` with ``x̂ = (x - μ) / √(σ² + ε)``, μ and σ² of each channel over all ranks' elements.

    Source: Ioffe, Szegedy, "Batch Normalization", ICML 2015, arXiv 1502.03167, of which the derivative is; the means in
    it are those over all ranks. Computed in float32 for half-precision input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        if x.numel() // x.shape[1] * dist.get_world_size() < 2:
            raise ValueError(f"batch norm needs more than one value per channel, got input of shape {tuple(x.shape)}")
        wide = _widened(x)
        mean, variance, count = _statistics(wide)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var), momentum)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, mean, scale, count, weight, bias)
        normalised = (wide - _channels(mean, x)) * _channels(scale, x)
        if weight is not None:
            normalised = normalised * _channels(weight, x)
        if bias is not None:
            normalised = normalised + _channels(bias, x)
        return normalised.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, mean, scale, count, weight, bias = ctx.saved_tensors
        gradient = _widened(gradients[0])
        normalised = (_widened(x) - _channels(mean, x)) * _channels(scale, x)
        sums = torch.stack([gradient.sum(_but_channels(x)), (gradient * normalised).sum(_but_channels(x))])
        of_bias, of_weight = sums.clone()
        _, _, _, learns_weight, learns_bias, _, _ = ctx.needs_input_grad
        of_x = None
        if ctx.needs_input_grad[0]:
            dist.all_reduce(sums)
            plain, along = sums / count
            of_x = gradient - _channels(plain, x) - normalised * _channels(along, x)
            of_x = of_x * _channels(scale if weight is None else scale * weight, x)
            of_x = of_x.to(x.dtype)
        return (
            of_x,
            None,
            None,
            of_weight.to(weight.dtype) if learns_weight else None,
            of_bias.to(bias.dtype) if learns_bias else None,
            None,
            None,
        )


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel over all ranks, ``(C,)``, and how many elements these are of, ``(1,)``."""
    own_variance, own_mean = torch.var_mean(x, _but_channels(x), correction=0)
    own_count = torch.full_like(own_mean[:1], x.numel() // x.shape[1])  # of images of one size the same on all ranks
    of_all = _of_each(torch.cat([own_mean, own_variance, own_count]))
    means, variances, counts = of_all[:, : len(own_mean)], of_all[:, len(own_mean) : -1], of_all[:, -1:]
    count = counts.sum(0)
    mean = (counts / count * means).sum(0)
    return mean, (counts / count * (variances + (means - mean).square())).sum(0), count


def _but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
