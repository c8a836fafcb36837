"""Methods that compare how things within a network relate: examples to each other (SP, PKT, RKD), channels (NST)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.block_features import StageDistiller, Stages
from blockkd.baselines.embeddings import EmbeddingDistiller
from blockkd.baselines.numerics import length, products, unit, widen
from blockkd.distiller import Losses
from blockkd.ranks import gathered

LEAST_SIMILARITY = 1e-7  # of PKT's kernel: the logarithm of 0 would follow


class SP(StageDistiller):
    """Similarity-preserving distillation: which examples of a batch look alike inside.

    Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682; see
    ``similarity_loss``. Any two features will do, also of another layout or size.

    Args:
        teacher, student, example: see ``StageDistiller``.
        beta: weight β of the similarities.
        stages: after which blocks; see ``StageDistiller``.
        shared: the other parameters of ``StageDistiller``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float = 3000.0,
        stages: Stages = "last",
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, beta=beta, stages=stages, **shared)

    def block_loss(self, i: int, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The similarities at block i."""
        del i
        return similarity_loss(gathered(student), gathered(teacher))


def similarity_loss(student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
    """``1/B² · ‖G^S - G^T‖_F²``, with G the matrix ``Q Qᵀ`` of scalar products, each row over its length.

    Source: arXiv 1907.09682, the similarity-preserving loss; ``Q (B, C·H·W)`` is the feature laid out flat. The weight
    3000 belongs to this mean over all B² pairs.

    Args:
        student: ``(B, ...)``.
        teacher: ``(B, ...)``, of any shape beyond the batch.

    Returns:
        A scalar, 0 for equal features.
    """
    flat = (widen(feature).flatten(1) for feature in (student, teacher))
    ours, theirs = (unit(products(q, q)) for q in flat)
    return F.mse_loss(ours, theirs)


class NST(StageDistiller):
    """Neuron selectivity transfer: which patterns over the grid the channels respond to, as one distribution.

    Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219,
    with the polynomial kernel; see ``selectivity_loss``. Time and memory grow with the square of the
    channels.

    Args:
        teacher, student, example: see ``StageDistiller``.
        beta: weight β; the field's 50, for the mean over the batch and all pairs of channels, summed over blocks.
        stages: after which blocks; see ``StageDistiller``.
        shared: the other parameters of ``StageDistiller``.

    Raises:
        ValueError: features without places (vectors, maps of 1×1).
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float = 50.0,
        stages: Stages = "all",
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, beta=beta, stages=stages, **shared)
        self.require_places()

    def block_loss(self, i: int, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The patterns at block i."""
        return selectivity_loss(*self.maps(i, student, teacher))


def selectivity_loss(student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B D H W"]) -> Float[Tensor, ""]:
    """The squared maximum mean discrepancy between the channels of both, each over its length, mean over the batch.

    ``MMD² = mean k(t, t') + mean k(s, s') - 2 mean k(s, t)`` with ``k(a, b) = (aᵀb)²``, over all pairs of channels.

    Source: arXiv 1707.01219, neuron selectivity transfer with the polynomial kernel of degree 2 and no offset.

    Args:
        student: ``(B, C, H, W)``.
        teacher: ``(B, D, H, W)``, on the same grid.

    Returns:
        A scalar ≥ 0 (up to rounding), 0 for equal features.
    """
    ours, theirs = (unit(widen(maps).flatten(2)) for maps in (student, teacher))

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return products(left, right).square().mean()

    return kernel(theirs, theirs) + kernel(ours, ours) - 2 * kernel(ours, theirs)


class PKT(EmbeddingDistiller):
    """Probabilistic knowledge transfer: how likely each example is another's neighbour.

    Source: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    arXiv 1803.10837, with the cosine kernel; see ``neighbourhood_loss``.

    Args:
        teacher, student, example: see ``EmbeddingDistiller``.
        beta: weight β of the divergence.
        shared: the other parameters of ``EmbeddingDistiller``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float = 30000.0,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, beta=beta, **shared)

    def forward(self, inputs: Any, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``feature/neighbours`` and ``distill/student``."""
        return self.compared(inputs, targets, _neighbour_losses, **context)


def _neighbour_losses(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"]) -> dict[str, Float[Tensor, ""]]:
    return {"feature/neighbours": neighbourhood_loss(gathered(student), gathered(teacher))}


def neighbourhood_loss(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    """``1/B² · Σ_i Σ_{j≠i} p_ij log(p_ij / q_ij)``, p of the teacher and q of the student.

    ``p_ij = K(x_i, x_j) / Σ_{k≠i} K(x_i, x_k)`` with ``K(a, b) = (cos(a, b) + 1) / 2``.

    Source: arXiv 1803.10837, the divergence between the conditional probabilities of student and teacher. An example
    is not its own neighbour there; the field's code counts it as one, with the similarity 1, which makes next to no
    difference in batches of usual size. The paper sums; the weight 30000 belongs to the field's mean over all B²
    pairs. A batch of one gives 0.

    Args:
        student: embeddings ``(B, D)``.
        teacher: embeddings ``(B, E)``.

    Returns:
        A scalar ≥ 0 (up to rounding), 0 for equal embeddings.
    """
    (p, log_p), (_, log_q) = (_neighbours(x) for x in (teacher, student))
    return (p * (log_p - log_q)).mean()


def _neighbours(embeddings: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B B"], Float[Tensor, "B B"]]:
    """Each row's probabilities of its neighbours, 0 for itself, and logarithms of them, without meaning for itself."""
    directions = unit(widen(embeddings))
    kernel = ((products(directions, directions) + 1) / 2).clamp_min(LEAST_SIMILARITY)
    others = 1 - torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    total = (kernel * others).sum(dim=1, keepdim=True).clamp_min(LEAST_SIMILARITY)
    return kernel * others / total, kernel.log() - total.log()


class RKD(EmbeddingDistiller):
    """Relational knowledge distillation: distances between two examples and angles between three.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068; see ``distance_loss`` and
    ``angle_loss``. Memory grows with the cube of the batch size.

    Args:
        teacher, student, example: see ``EmbeddingDistiller``.
        beta: weight β of both together.
        distance_weight: weight of the distances.
        angle_weight: weight of the angles.
        shared: the other parameters of ``EmbeddingDistiller``.

    Raises:
        ValueError: a weight below zero, or neither above.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float = 1.0,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, beta=beta, **shared)
        if min(distance_weight, angle_weight) < 0 or not distance_weight + angle_weight:
            raise ValueError(
                f"distance_weight is {distance_weight} and angle_weight {angle_weight}, expected zero or more, and one "
                "above zero"
            )
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, inputs: Any, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → ``task/student``, ``feature/distances``, ``feature/angles`` and ``distill/student``."""
        return self.compared(inputs, targets, self._relations_apart, **context)

    def _relations_apart(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"]
    ) -> dict[str, Float[Tensor, ""]]:
        student, teacher = gathered(student), gathered(teacher)
        losses = {}
        if self.distance_weight:
            losses["feature/distances"] = self.distance_weight * distance_loss(student, teacher)
        if self.angle_weight:
            losses["feature/angles"] = self.angle_weight * angle_loss(student, teacher)
        return losses


def distance_loss(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    """RKD-D, ``1/B² · Σ_ij l(ψ_ij^S, ψ_ij^T)`` with ``ψ_ij = ‖x_i - x_j‖₂ / μ`` and μ the mean over i ≠ j.

    l is the Huber loss with δ = 1. Source: arXiv 1904.05068, distance-wise distillation. As in the field's code,
    which the weight 25 belongs to, the mean is over all B² pairs, those of an example with itself adding nothing.

    Args:
        student: embeddings ``(B, D)``.
        teacher: embeddings ``(B, E)``.

    Returns:
        A scalar, 0 for equal embeddings, also after moving, scaling or turning one side.
    """
    ours, theirs = (_relative_distances(widen(x)) for x in (student, teacher))
    return F.smooth_l1_loss(ours, theirs)


def angle_loss(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    """RKD-A, ``1/B³ · Σ_ijk l(ψ_ijk^S, ψ_ijk^T)`` with ``ψ_ijk = cos ∠ x_i x_j x_k``, the angle at x_j.

    l is the Huber loss with δ = 1. Source: arXiv 1904.05068, angle-wise distillation. As in the field's code,
    which the weight 50 belongs to, the mean is over all B³ triples, degenerate ones adding nothing.

    Args:
        student: embeddings ``(B, D)``.
        teacher: embeddings ``(B, E)``.

    Returns:
        A scalar, 0 for equal embeddings, also after moving, scaling or turning one side.
    """
    ours, theirs = (_angles(widen(x)) for x in (student, teacher))
    return F.smooth_l1_loss(ours, theirs)


def _relative_distances(embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    distances = length(embeddings[:, None] - embeddings)
    pairs = max(len(embeddings) * (len(embeddings) - 1), 1)
    mean = distances.sum() / pairs
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B B B"]:
    """Entry (j, i, k) is the cosine of the angle at j between i and k."""
    directions = unit(embeddings[None] - embeddings[:, None])
    return products(directions, directions)
