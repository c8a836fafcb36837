"""Layers that do not learn, keeping for the backward pass only what the gradient of their input needs.

Autograd keeps the input of a convolution and of a batch norm also where their weights are frozen and no gradient of
these will ever be asked for, and the result of a ReLU where a mask tells all. In a frozen network that gradients go
through, as the stepping stones go through the teacher, that is nearly all that is kept.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def lean_backward(*inputs: Tensor) -> AbstractContextManager[object]:
    """A context in which frozen layers keep no more than they need; values and gradients are what they are without.

    Covered are convolutions and batch norms (by running statistics) whose parameters need no gradient, and ReLU unless
    in place, from modules or functions alike. In compiled code it does nothing: the compiler chooses what to keep.

    Args:
        inputs: what the layers run on; where they are given and none of them needs a gradient, nothing is changed.
    """
    if torch.compiler.is_compiling() or (inputs and not any(x.requires_grad for x in inputs)):
        return nullcontext()
    return _Lean()


class _Lean(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        instead = _INSTEAD.get(func)
        if instead is not None and torch.is_grad_enabled():
            return instead(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolution(
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if not input.requires_grad or _learns(weight, bias) or isinstance(padding, str) or input.ndim != weight.ndim:
        return func(input, weight, bias, stride, padding, dilation, groups)
    result: Tensor = _Convolution.apply(func, input, weight, bias, stride, padding, dilation, groups)
    return result


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
    if training or not input.requires_grad or _learns(weight, bias) or running_mean is None or running_var is None:
        return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    result: Tensor = _BatchNorm.apply(input, running_mean, running_var, weight, bias, eps)
    return result


def _relu(func: Callable[..., Tensor], input: Tensor, inplace: bool = False) -> Tensor:
    if not input.requires_grad or inplace:
        return func(input, inplace) if inplace else func(input)
    result: Tensor = _ReLU.apply(input)
    return result


_INSTEAD: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    F.batch_norm: _batch_norm,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
}


def _learns(*parameters: Tensor | None) -> bool:
    return any(parameter is not None and parameter.requires_grad for parameter in parameters)


class _Convolution(Function):
    """``∂L/∂x`` is the transposed convolution of ``∂L/∂y`` with the weight: no ``x`` in it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        result: Tensor = func(x, weight, bias, *options)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, weight, _, *options, groups = inputs
        ctx.save_for_backward(weight.to(output.dtype))  # under autocast another than it has
        ctx.shape, ctx.stride, ctx.dtype, ctx.groups = x.shape, x.stride(), x.dtype, groups
        ctx.options = [[option] * (x.ndim - 2) if isinstance(option, int) else list(option) for option in options]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        x = torch.empty_strided(
            ctx.shape, ctx.stride, dtype=weight.dtype, device=weight.device
        )  # only its shape counts
        asked = [True, False, False]  # the gradient of x, not those of weight and bias
        gradient, _, _ = torch.ops.aten.convolution_backward(
            gradients[0], x, weight, None, *ctx.options, False, [0] * len(ctx.options[0]), ctx.groups, asked
        )
        return None, gradient.to(ctx.dtype), None, None, None, None, None, None


class _BatchNorm(Function):
    """``∂L/∂x = ∂L/∂y · γ / √(σ² + ε)``, per channel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, _, variance, weight, _, eps = inputs
        scale = (variance + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        ctx.save_for_backward(scale.reshape(-1, *[1] * (x.ndim - 2)))
        ctx.dtype = x.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (scale,) = ctx.saved_tensors
        return (gradients[0] * scale).to(ctx.dtype), None, None, None, None, None


class _ReLU(Function):
    """``∂L/∂x`` is ``∂L/∂y`` where ``y > 0``, else 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del inputs
        ctx.save_for_backward(output.to(torch.bool).view(torch.uint8))  # one byte where the result would take four

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (active,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], active.to(gradients[0].dtype), 0)
