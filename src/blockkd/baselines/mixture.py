"""Labels, a method's own loss, and a logit distance beside it, weighed and named."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Real
from torch import Tensor

from blockkd.baselines.logits import kd_terms
from blockkd.distances import KL, LogitDistance
from blockkd.distiller import Losses


@dataclass(frozen=True)
class Mixture:
    """``L = α · CE(Y^S, y) + β · L_method + w · d_L(Y^S, Y^T)``, the sum that every method on features trains.

    In RepDistiller's options, by which the field's weights are quoted, α is called ``-r``, β ``-b``, and w ``-a``.

    Args:
        alpha: weight α of the labels.
        beta: weight β of the method's own loss.
        logit_weight: weight w of the logit distance.
        distance: the logit distance ``d_L``; ``KL(temperature=4)`` when left out.

    Raises:
        ValueError: a weight is below zero, or all are zero.
    """

    alpha: float
    beta: float
    logit_weight: float
    distance: LogitDistance | None

    def __post_init__(self) -> None:
        weights = {"alpha": self.alpha, "beta": self.beta, "logit_weight": self.logit_weight}
        wrong = {name: weight for name, weight in weights.items() if weight < 0}
        if wrong or not any(weights.values()):
            raise ValueError(f"the weights are {wrong or weights}, expected zero or more, and one above zero")
        if self.distance is not None and not self.logit_weight:
            warnings.warn("distance has no effect: logit_weight is 0; give it a weight", stacklevel=4)

    def losses(
        self,
        logits: Float[Tensor, "..."],
        targets: Real[Tensor, " B"],
        teacher_logits: Float[Tensor, "..."],
        method: Mapping[str, Float[Tensor, ""]],
    ) -> Losses:
        """Weigh and sum up one batch.

        Args:
            logits: the student's, ``(B, K)``.
            targets: labels ``(B,)``.
            teacher_logits: ``(B, K)``.
            method: the terms of the method's own loss by name, not yet weighed.

        Returns:
            The losses ``task/student``, ``distill/student``, and those of the method.

        Raises:
            ValueError: logits that are not ``(B, K)``, class counts that differ, labels outside ``0 … K-1``.
        """
        distance = self.distance if self.distance is not None else KL()
        terms = kd_terms(logits, targets, teacher_logits, self.alpha, self.logit_weight, distance)
        return Losses.of(terms | {name: self.beta * loss for name, loss in method.items()}, logits)
