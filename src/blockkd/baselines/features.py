"""Methods that bring the student's features to the teacher's, block by block: FitNet, AT, VID."""

from collections.abc import Callable
from math import expm1, log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.block_features import StageDistiller, Stages
from blockkd.baselines.numerics import unit, widen
from blockkd.connectors import connector
from blockkd.features import Feature


class FitNet(StageDistiller):
    """FitNet: the student's mapped feature is to be the teacher's, ``L_HT = mean (C_i(F_i^S) - F_i^T)²``.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550. There half the sum
    of the squares, and the student's lower half is trained by it alone before it learns from logits. Here as in the
    field's comparisons since RepDistiller: the mean, and both at once, which the weight 100 belongs to. As there,
    a regressor stands between the features also where their shapes agree; where the student's grid is smaller, its
    mapped feature is interpolated, not sent through a transposed convolution. The regressor ends without ReLU,
    since the teacher's features may be negative.

    Beside the student this trains the regressors. The middle block is the field's choice, of the field's stages: those
    of a VGG are ``teacher_blocks=["relu_1", "relu_2", "relu_3", "relu_4"]``; of the four found by themselves it is the
    third.

    Args:
        teacher, student, example: see ``StageDistiller``.
        beta: weight β of the hints.
        stages: where the hints are given; see ``StageDistiller``.
        make_connector: (student feature, teacher feature) → the regressor; ``blockkd.connector`` by default.
        shared: the other parameters of ``StageDistiller``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float = 100.0,
        stages: Stages = "middle",
        make_connector: Callable[[Feature, Feature], nn.Module] = connector,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, beta=beta, stages=stages, **shared)
        self.connect(self.stages, make_connector)

    def block_loss(self, i: int, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The hint at block i."""
        return hint_loss(self.connectors[str(i)](student), teacher)


def hint_loss(student: Float[Tensor, "B *feature"], teacher: Float[Tensor, "B *feature"]) -> Float[Tensor, ""]:
    """FitNet's hint, ``mean (student - teacher)²`` over the batch and all elements (see ``FitNet``).

    Args:
        student: the student's mapped feature, ``(B, ...)``.
        teacher: the teacher's feature, of the same shape.

    Returns:
        A scalar, 0 for equal features.
    """
    return F.mse_loss(widen(student), widen(teacher))


class AT(StageDistiller):
    """Attention transfer: where on the grid features are large.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928, with
    activation-based attention ``Q = Σ_c |F_c|^p``; see ``attention_loss``.

    Args:
        teacher, student, example: see ``StageDistiller``.
        beta: weight β of the attention maps.
        stages: after which blocks; see ``StageDistiller``.
        p: the power; 2 in the paper's experiments.
        shared: the other parameters of ``StageDistiller``.

    Raises:
        ValueError: p is not above zero, or features without places (vectors, maps of 1×1).
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float = 1000.0,
        stages: Stages = "all",
        p: float = 2.0,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, beta=beta, stages=stages, **shared)
        if not p > 0:
            raise ValueError(f"p is {p}, expected a power above zero")
        self.p = p
        self.require_places()

    def block_loss(self, i: int, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The attention maps at block i."""
        return attention_loss(*self.maps(i, student, teacher), self.p)


def attention_loss(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B D H W"], p: float = 2.0
) -> Float[Tensor, ""]:
    """``mean (Q^S/‖Q^S‖₂ - Q^T/‖Q^T‖₂)²`` over batch and places, with ``Q = Σ_c |F_c|^p``.

    Source: arXiv 1612.03928, activation-based attention transfer. The paper writes the norm of the difference; its
    authors' code takes the mean of the squares, which the weight 1000 belongs to, and so does this. Scaling a feature
    changes nothing.

    Args:
        student: ``(B, C, H, W)``.
        teacher: ``(B, D, H, W)``, on the same grid.
        p: the power, above zero.

    Returns:
        A scalar, 0 for equal features; a feature that is zero everywhere counts as attention 0 everywhere.
    """
    ours, theirs = (unit(widen(maps).abs().pow(p).mean(dim=1).flatten(1)) for maps in (student, teacher))
    return F.mse_loss(ours, theirs)


class VID(StageDistiller):
    """Variational information distillation: the teacher's feature is to be likely, given the student's.

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835:
    ``-log q(t | s)`` with a normal distribution q, of learned mean ``μ(s)`` and variance per channel, bounds the mutual
    information of both features from below. See ``gaussian_loss`` and ``Gaussian``. The paper's further term on the
    last layer is left out, as in the field's comparisons; ``logit_weight`` adds plain distillation.

    Beside the student this trains the regressors of the mean, and the variances.

    Args:
        teacher, student, example: see ``StageDistiller``.
        beta: weight β of the negative log-likelihood.
        stages: after which blocks; see ``StageDistiller``.
        initial_variance: at which all variances start.
        shared: the other parameters of ``StageDistiller``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float = 1.0,
        stages: Stages = "all",
        initial_variance: float = 5.0,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, beta=beta, stages=stages, **shared)
        self.connect(self.stages, lambda ours, theirs: Gaussian(ours.channels, theirs.channels, initial_variance))

    def block_loss(self, i: int, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The negative log-likelihood at block i."""
        ours, theirs = self.maps(i, student, teacher)
        mean, variance = self.connectors[str(i)](ours)
        return gaussian_loss(mean, variance, theirs)


class Gaussian(nn.Module):
    """A normal distribution of the teacher's channels at each place, given the student's.

    The mean comes from three 1×1 convolutions with ReLU between them, as wide as the teacher's feature and without
    bias. The variance ``σ_c² = softplus(a_c) + ε`` is one number per channel (arXiv 1904.05835).

    Args:
        student_channels: C.
        teacher_channels: D.
        initial_variance: σ² at the start, above ε = 1e-5.
    """

    epsilon = 1e-5

    def __init__(self, student_channels: int, teacher_channels: int, initial_variance: float = 5.0) -> None:
        super().__init__()
        if not initial_variance > self.epsilon:
            raise ValueError(f"initial_variance is {initial_variance}, expected more than {self.epsilon}")
        widths = [student_channels, teacher_channels, teacher_channels, teacher_channels]
        first, second, third = (nn.Conv2d(widths[j], widths[j + 1], 1, bias=False) for j in range(3))
        self.mean = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        start = log(expm1(initial_variance - self.epsilon))  # softplus turned around
        self.raw_variance = nn.Parameter(torch.full((teacher_channels,), start))

    def forward(self, maps: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B D H W"], Float[Tensor, " D"]]:
        """Student maps ``(B, C, H, W)`` → mean ``(B, D, H, W)`` and variance ``(D,)`` of the teacher's."""
        return self.mean(maps), F.softplus(widen(self.raw_variance)) + self.epsilon


def gaussian_loss(
    mean: Float[Tensor, "B D H W"], variance: Float[Tensor, " D"], target: Float[Tensor, "B D H W"]
) -> Float[Tensor, ""]:
    """``mean ½ ((target - μ)² / σ² + log σ²)`` over batch, channels and places.

    Source: arXiv 1904.05835, the negative logarithm of a normal density without its constant. The paper
    sums over channels and places; the field's weight 1 belongs to the mean. It may be negative.

    Args:
        mean: μ, ``(B, D, H, W)``.
        variance: σ² of each channel, ``(D,)``, above zero.
        target: the teacher's feature, ``(B, D, H, W)``.

    Returns:
        A scalar.
    """
    per_channel = widen(variance)[:, None, None]
    squares = (widen(target) - widen(mean)).square()
    return (squares / per_channel + per_channel.log()).mean() / 2
