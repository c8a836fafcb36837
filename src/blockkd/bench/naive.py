"""Block-KD written down as the paper's equations read, without any care for cost: what ours is measured against."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from blockkd.block_kd import BlockKD
from blockkd.distiller import Distiller, Losses


class NaiveBlockKD(Distiller):
    """Every stone runs by itself, and the teacher is in evaluation mode but not frozen.

    The losses are those of ``BlockKD`` with ``gamma = 0`` and the distance ``KL(temperature=4)``.

    Args:
        method: gives networks, cuts, connectors and weights, and is not to be used any more.
    """

    def __init__(self, method: BlockKD) -> None:
        teacher = method.teacher_blocks.network
        super().__init__(teacher, method.student)
        teacher.requires_grad_(True)
        self._blocks = method.teacher_blocks, method.student_blocks
        self.connectors = method.connectors
        self.alpha, self.beta, self.stone_weights = method.alpha, method.beta, method.stone_weights

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``task/stone_i``, ``distill/…``."""
        teacher, student = self._blocks
        features, logits = student.run(inputs, **context)
        with torch.no_grad():
            target = teacher(inputs, **context)
        terms = {
            "task/student": self.alpha * F.cross_entropy(logits, targets),
            "distill/student": self.beta * _distance(logits, target),
        }
        for i, weight in self.stone_weights.items():
            x = self.connectors[str(i)](features[i - 1])
            for block in list(teacher.blocks)[i:]:
                x = block(x, **context)
            stone = teacher.classifier(x, **context)
            terms[f"task/stone_{i}"] = self.alpha * weight * F.cross_entropy(stone, targets)
            terms[f"distill/stone_{i}"] = self.beta * weight * _distance(stone, target)
        return Losses.of(terms, logits)


def _distance(learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """τ² · KL(softmax(target/τ) ‖ softmax(learner/τ)) with τ = 4."""
    return 16 * F.kl_div((learner / 4).log_softmax(1), (target / 4).softmax(1), reduction="batchmean")
