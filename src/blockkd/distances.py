"""Logit distances ``d_L``: objectives together with their parameters, so that a recipe can name them.

Where several processes train together, they bring the rows of all of them to what compares samples with each other::

    distance:
      class_path: blockkd.distances.KL
      init_args: {temperature: 4}
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Real
from torch import Tensor

from blockkd.objectives import check_temperature, decoupled_kd, dist, kl_divergence, squared_error, standardize
from blockkd.ranks import gathered


class LogitDistance(ABC):
    """A logit distance ``d_L``: how far the learner's logits are from the target's.

    Gradient flows into both arguments. The caller detaches the target, unless it is meant to learn as well. One that
    compares samples with each other takes ``blockkd.ranks.gathered`` rows, so that processes training together compare
    all of theirs.
    """

    @abstractmethod
    def __call__(
        self, learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], labels: Real[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Logits ``(B, K)`` of learner and target, labels ``(B,)`` → a scalar, the mean over the batch.

        Labels that are floating-point numbers tell that it is a regression, of K = 1 output.
        """


class _Softened(LogitDistance):
    """One between softened probabilities."""

    temperature: float
    standardized: bool

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def _scaled(self, learner: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return (standardize(learner), standardize(target)) if self.standardized else (learner, target)


@dataclass(frozen=True)
class KL(_Softened):
    """Softened Kullback-Leibler divergence (Hinton et al., arXiv 1503.02531); see ``kl_divergence``.

    The caller detaches the target. In a regression, where the outputs are no logits of classes, it is the squared
    error: of normal distributions of equal width around two numbers, the divergence is that but for a factor.

    Args:
        temperature: τ > 0; 4 is the field's choice for CIFAR-100, 1 for ImageNet, 2 for standardized logits.
        standardized: whether both sides are standardized first (Sun et al., arXiv 2403.01427).

    Raises:
        ValueError: τ is not above zero.
    """

    temperature: float = 4.0
    standardized: bool = False

    def __call__(
        self, learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], labels: Real[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Logits ``(B, K)`` of learner and target → a scalar; the labels ``(B,)`` tell a regression from classes."""
        if labels.is_floating_point():
            return squared_error(learner, target)
        return kl_divergence(*self._scaled(learner, target), self.temperature)


@dataclass(frozen=True)
class DKD(_Softened):
    """Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679); see ``decoupled_kd``.

    The caller detaches the target. The defaults are the authors' for ResNet32x4 → ResNet8x4 on CIFAR-100.
    Their β depends on the pair; they also let the loss grow linearly over the first epochs, which is a matter
    of the schedule and not done here.

    Args:
        alpha: weight α of the labelled class against the rest.
        beta: weight β of the classes that are not labelled, among themselves.
        temperature: τ > 0.
        standardized: whether both sides are standardized first (Sun et al., arXiv 2403.01427).

    Raises:
        ValueError: τ is not above zero.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    standardized: bool = False

    def __call__(
        self, learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], labels: Real[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Logits ``(B, K)`` of learner and target, labels ``(B,)`` → a scalar."""
        _check_classes(self, labels)
        return decoupled_kd(*self._scaled(learner, target), labels, self.alpha, self.beta, self.temperature)


@dataclass(frozen=True)
class DIST(_Softened):
    """Correlations within samples and within classes (Huang et al., arXiv 2205.10536); see ``dist``.

    The caller detaches the target. The authors take ``β = γ = 1``, τ = 4 on CIFAR-100 and τ = 1 on ImageNet,
    and weigh the whole by 2 on CIFAR-100, beside a cross-entropy of weight 1.

    Args:
        beta: weight β of the correlation within each sample (inter-class).
        gamma: weight γ of the correlation within each class, over the batch (intra-class).
        temperature: τ > 0; the default is the authors' for CIFAR-100.
        standardized: whether both sides are standardized first (Sun et al., arXiv 2403.01427).

    Raises:
        ValueError: τ is not above zero.
    """

    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 4.0
    standardized: bool = False

    def __call__(
        self, learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], labels: Real[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Logits ``(B, K)`` of learner and target → a scalar; which class the labels ``(B,)`` name plays no part."""
        _check_classes(self, labels)
        learner, target = (gathered(logits) for logits in self._scaled(learner, target))
        return dist(learner, target, self.beta, self.gamma, self.temperature)


@dataclass(frozen=True)
class SquaredError(LogitDistance):
    """Mean squared error between the logits themselves; see ``squared_error``.

    The caller detaches the target.
    """

    def __call__(
        self, learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], labels: Real[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Outputs ``(B, K)`` of learner and target → a scalar; the labels ``(B,)`` play no part."""
        del labels
        return squared_error(learner, target)


def _check_classes(distance: LogitDistance, labels: Real[Tensor, " B"]) -> None:
    if labels.is_floating_point():
        raise ValueError(
            f"{type(distance).__name__} compares probabilities of classes, but the labels are numbers: take KL or "
            "SquaredError"
        )
