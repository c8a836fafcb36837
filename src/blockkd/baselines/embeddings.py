"""Methods that compare what the networks' last layers are given."""

from collections.abc import Callable
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from blockkd.baselines.heads import Head
from blockkd.baselines.mixture import Mixture
from blockkd.calling import logits_of
from blockkd.distances import LogitDistance
from blockkd.distiller import Distiller, Losses


class EmbeddingDistiller(Distiller):
    """``L = α · CE(Y^S, y) + β · L_method(embeddings) + w · d_L(Y^S, Y^T)``; a method's ``forward`` calls ``compared``.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)``; frozen from here on.
        student: maps a batch to logits ``(B, K)``; trained in place.
        example: a batch of inputs ``(B, ...)``, by which the layer that gives the logits is found.
        beta: weight β of the method's own loss.
        alpha: weight α of the labels.
        logit_weight: weight w of a logit distance beside them.
        distance: the logit distance ``d_L``; ``KL(temperature=4)`` when left out.
        teacher_head, student_head: the name of the layer that gives the logits, whose input is compared; found by
            ``example`` when left out, and without one the last ``nn.Linear``.

    Raises:
        ValueError: a network without such a layer, or weights below zero.
    """

    compiles: ClassVar[bool] = False  # hooks, put on and taken off in each step, catch what the last layers are given

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float,
        alpha: float = 1.0,
        logit_weight: float = 0.0,
        distance: LogitDistance | None = None,
        teacher_head: str | None = None,
        student_head: str | None = None,
    ) -> None:
        super().__init__(teacher, student)
        self.mixture = Mixture(alpha, beta, logit_weight, distance)
        self.heads = Head(teacher, teacher_head, example), Head(student, student_head, example)

    def compared(
        self,
        inputs: Any,
        targets: Int[Tensor, " B"],
        compare: Callable[[Tensor, Tensor], dict[str, Tensor]],
        **context: Float[Tensor, "B ..."],
    ) -> Losses:
        """Run both networks on a batch, and compare what their last layers are given.

        Args:
            inputs: ``(B, ...)``.
            targets: labels ``(B,)``.
            compare: embeddings of student ``(B, D)`` and teacher ``(B, E)`` → the method's losses by name, scalars, not
                yet weighed by β.
            context: further arguments of both networks.

        Returns:
            The losses ``task/student``, those of the method, and ``distill/student``.
        """
        teacher_head, student_head = self.heads
        network = self.teacher
        assert network is not None
        with student_head.watched(self.student) as ours:
            logits = logits_of(self.student, inputs, **context)
        with teacher_head.watched(network) as theirs:
            target = self.teacher_logits(inputs, **context)
        losses = {}
        if self.mixture.beta:
            losses = compare(
                student_head.embedding(self.student, ours, logits), teacher_head.embedding(network, theirs, target)
            )
        return self.mixture.losses(logits, targets, target, losses)
