"""Methods that see labels and logits only."""

from typing import Any

from jaxtyping import Float, Real
from torch import Tensor, nn

from blockkd.calling import logits_of
from blockkd.distances import KL, LogitDistance
from blockkd.distiller import Distiller, Losses, check_logits
from blockkd.objectives import task_loss


class CrossEntropy(Distiller):
    """The student by itself, trained on labels: what every distillation has to beat.

    Args:
        teacher: accepted so that all methods are called alike, and left alone; may be None.
        student: maps a batch to logits ``(B, K)``.
        label_smoothing: the share of the target spread evenly over all classes, 0 ≤ ε < 1
            (Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016).
    """

    def __init__(self, teacher: nn.Module | None, student: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__(None, student)
        del teacher
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 ≤ ε < 1")
        self.label_smoothing = label_smoothing

    def forward(self, inputs: Any, targets: Real[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the loss ``task/student``."""
        logits = logits_of(self.student, inputs, **context)
        check_logits(logits, targets)
        return Losses.of({"task/student": task_loss(logits, targets, self.label_smoothing)}, logits)


class KD(Distiller):
    """Plain knowledge distillation, ``L = α · CE(Y^S, y) + β · d_L(Y^S, Y^T)``.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    The defaults are the field's for CIFAR-100 (RepDistiller): ``0.1 CE + 0.9 KD`` at temperature 4.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)``; frozen from here on.
        student: maps a batch to logits ``(B, K)``.
        alpha: weight α of the labels.
        beta: weight β of the teacher's logits.
        distance: the logit distance ``d_L``; by default ``KL(temperature=4)``.
    """

    takes_recorded = True

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        alpha: float = 0.1,
        beta: float = 0.9,
        distance: LogitDistance | None = None,
    ) -> None:
        super().__init__(teacher, student)
        self.alpha, self.beta = alpha, beta
        self.distance = distance if distance is not None else KL()

    def forward(
        self,
        inputs: Any,
        targets: Real[Tensor, " B"],
        *,
        recorded: Float[Tensor, "B K"] | None = None,
        **context: Float[Tensor, "B ..."],
    ) -> Losses:
        """One batch, with the teacher's logits if known → the losses ``task/student`` and ``distill/student``."""
        logits = logits_of(self.student, inputs, **context)
        target = self.teacher_logits(inputs, recorded, **context)
        return Losses.of(kd_terms(logits, targets, target, self.alpha, self._beta_now(), self.distance), logits)

    def _beta_now(self) -> float | Tensor:
        return self.beta


def kd_terms(
    logits: Float[Tensor, "..."],
    targets: Real[Tensor, " B"],
    target: Float[Tensor, "..."],
    alpha: float,
    beta: float | Tensor,
    distance: LogitDistance,
) -> dict[str, Float[Tensor, ""]]:
    """What the student's own logits are trained by, ``α · CE(Y^S, y)`` and ``β · d_L(Y^S, Y^T)``.

    Args:
        logits: the student's, ``(B, K)``.
        targets: labels ``(B,)``.
        target: the teacher's logits ``(B, K)``.
        alpha: weight α; 0 leaves the term out.
        beta: weight β; the number 0 leaves the term out.
        distance: the logit distance ``d_L``.

    Returns:
        The losses ``task/student`` and ``distill/student``.

    Raises:
        ValueError: logits that are not ``(B, K)``, class counts that differ, labels outside ``0 … K-1``.
    """
    check_logits(logits, targets, target)
    terms = {}
    if alpha:
        terms["task/student"] = alpha * task_loss(logits, targets)
    if isinstance(beta, Tensor) or beta:
        terms["distill/student"] = beta * distance(logits, target, targets)
    return terms
