"""Multi-level logit distillation: the same predictions compared by sample, by batch and by class.

Source of all here: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, doi 10.1109/CVPR52729.2023.02325.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from blockkd.baselines.logits import KD
from blockkd.baselines.numerics import products, widen
from blockkd.distances import LogitDistance
from blockkd.objectives import kl_divergence, standardize
from blockkd.ranks import gathered


def batch_correlation(
    learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], temperature: float
) -> Float[Tensor, ""]:
    """Batch level, ``1/B · ‖G^T - G^S‖²_F`` with ``G = P Pᵀ``, how alike two samples of the batch are predicted.

    Source: Jin et al., CVPR 2023, batch-level alignment; ``P`` is the ``(B, K)`` matrix of ``softmax(z/τ)``.

    Args:
        learner: logits that learn, ``(B, K)``.
        target: logits to be learned, ``(B, K)``.
        temperature: τ > 0.

    Returns:
        A scalar.

    Raises:
        ValueError: τ is not above zero, or the shapes differ.
    """
    ours, theirs = _predictions(learner, target, temperature)
    return (products(theirs, theirs) - products(ours, ours)).square().sum() / len(ours)


def class_correlation(
    learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], temperature: float
) -> Float[Tensor, ""]:
    """Class level, ``1/K · ‖M^T - M^S‖²_F`` with ``M = Pᵀ P``, how often two classes are confused in the batch.

    Source: Jin et al., CVPR 2023, class-level alignment; ``P`` is the ``(B, K)`` matrix of ``softmax(z/τ)``. M is a
    sum over the batch, so the loss grows with the square of the batch size, as it does for the authors.

    Args:
        learner: logits that learn, ``(B, K)``.
        target: logits to be learned, ``(B, K)``.
        temperature: τ > 0.

    Returns:
        A scalar.

    Raises:
        ValueError: τ is not above zero, or the shapes differ.
    """
    ours, theirs = _predictions(learner, target, temperature)
    return (products(theirs.T, theirs.T) - products(ours.T, ours.T)).square().sum() / ours.shape[1]


@dataclass(frozen=True)
class MultiLevel(LogitDistance):
    """The distance of MLKD, ``Σ_τ (a · L_ins(τ) + b · L_batch(τ) + c · L_class(τ))``.

    Source: Jin et al., CVPR 2023, multi-level alignment under prediction augmentation, which is the sum over
    several temperatures. ``L_ins`` is the softened KL divergence (see ``kl_divergence``; the factor τ² is that of
    the authors' code), the others are ``batch_correlation`` and ``class_correlation``. The caller detaches the target.

    The authors' public code differs from the paper, and the paper is followed here: there, masks for confident
    samples and classes are multiplied with losses that are already averaged, which only scales these by about 0.5,
    and the class level looks at one of the two augmented views only.

    Args:
        instance: weight a of the instance level.
        batch: weight b of the batch level.
        classes: weight c of the class level.
        temperatures: the τ summed over, each above 0.
        standardized: whether both sides are standardized first at the instance level, as Sun et al. combine the
            two (CVPR 2024, arXiv 2403.01427); the levels of batch and class keep the logits as they are.

    Raises:
        ValueError: there is no temperature, or one that is not above zero.
    """

    instance: float = 1.0
    batch: float = 1.0
    classes: float = 1.0
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)
    standardized: bool = False

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise ValueError("temperatures is empty, expected at least one temperature, such as [4]")
        for temperature in self.temperatures:
            _check_temperature(temperature)

    def __call__(
        self, learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], labels: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Logits ``(B, K)`` of learner and target → a scalar; the labels ``(B,)`` play no part."""
        del labels
        learner, target = gathered(learner), gathered(target)
        pair = (standardize(learner), standardize(target)) if self.standardized else (learner, target)
        levels = [
            self.instance * kl_divergence(*pair, temperature)
            + self.batch * batch_correlation(learner, target, temperature)
            + self.classes * class_correlation(learner, target, temperature)
            for temperature in self.temperatures
        ]
        return torch.stack(levels).sum()


class MLKD(KD):
    """Multi-level logit distillation, ``L = α · CE(Y^S, y) + β · (L_ins + L_batch + L_class)``.

    Source: Jin et al., "Multi-Level Logit Distillation", CVPR 2023; the losses are those of ``MultiLevel``. Defaults
    as in the authors' code for CIFAR-100. Its published numbers are not from the field's recipe: every image is seen
    in a weakly and a strongly augmented view at each step, and training takes 480 epochs (240 to 960 in the authors'
    files, by pair). Here the method takes the batch that it is given, one view of each image, for as long as it is
    trained: its numbers under the field's recipe are not comparable with the published ones.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)``; frozen from here on.
        student: maps a batch to logits ``(B, K)``.
        alpha: weight α of the labels.
        beta: weight β of the three levels.
        distance: by default ``MultiLevel()``: temperatures 2 to 6, all levels of weight 1.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        alpha: float = 0.1,
        beta: float = 0.9,
        distance: MultiLevel | None = None,
    ) -> None:
        super().__init__(teacher, student, alpha, beta, distance if distance is not None else MultiLevel())


def _predictions(
    learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], temperature: float
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
    _check_temperature(temperature)
    if learner.shape != target.shape:
        raise ValueError(
            f"learner {tuple(learner.shape)} and target {tuple(target.shape)} differ in shape: "
            "both must be (batch, classes) of the same samples and classes"
        )
    return (widen(learner) / temperature).softmax(dim=1), (widen(target) / temperature).softmax(dim=1)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, expected a finite number above 0")
