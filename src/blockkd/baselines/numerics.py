"""Arithmetic that several losses on features share."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """float16 and bfloat16 → float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(vectors: Float[Tensor, "*rows N"]) -> Float[Tensor, "*rows N"]:
    """Each vector over its Euclidean length; one of length zero stays zero.

    Its gradient is then the one of a vector of length 1, not of one divided by almost nothing: a channel or an
    example that has died can neither blow the gradient up nor make it NaN.
    """
    square = vectors.square().sum(dim=-1, keepdim=True)
    return vectors / torch.where(_above_zero(square), square, 1.0).sqrt()


def length(vectors: Float[Tensor, "*rows N"]) -> Float[Tensor, "*rows"]:
    """The Euclidean length of each vector, with gradient 0 where it is zero."""
    square = vectors.square().sum(dim=-1)
    # Replaced before the root as well: the root's gradient at 0 is infinite.
    return torch.where(_above_zero(square), torch.where(_above_zero(square), square, 1.0).sqrt(), 0.0)


def products(left: Float[Tensor, "*rows N D"], right: Float[Tensor, "*rows M D"]) -> Float[Tensor, "*rows N M"]:
    """The scalar product of each vector of ``left`` with each of ``right``, ``left rightᵀ``.

    In the precision of its arguments also under autocast, which would multiply matrices in half precision.
    """
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.mT


def _above_zero(square: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    return square > torch.finfo(square.dtype).tiny
