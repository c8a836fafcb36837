"""What methods that compare features block by block share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from blockkd.baselines.mixture import Mixture
from blockkd.blockwise import BlockwiseDistiller
from blockkd.connectors import shrink, to_maps
from blockkd.distances import LogitDistance
from blockkd.distiller import Losses
from blockkd.features import Feature

Stages = Literal["all", "middle", "last"] | Sequence[int]


class FeatureDistiller(BlockwiseDistiller):
    """``L = α · CE(Y^S, y) + β · L_method(features) + w · d_L(Y^S, Y^T)``.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)``; frozen from here on.
        student: maps a batch to logits ``(B, K)``; trained in place.
        example: a batch of inputs ``(B, ...)``; see ``BlockwiseDistiller``.
        beta: weight β of the method's own loss.
        alpha: weight α of the labels.
        logit_weight: weight w of a logit distance beside them.
        distance: the logit distance ``d_L``; ``KL(temperature=4)`` when left out.
        shared: the other parameters of ``BlockwiseDistiller``, which say how to cut.

    Raises:
        PartitionError: a network cannot be cut as asked.
        ValueError: weights below zero, or features that the method cannot compare.
    """

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
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, **shared)
        self.mixture = Mixture(alpha, beta, logit_weight, distance)

    @abstractmethod
    def feature_losses(
        self, student: Sequence[Float[Tensor, "B ..."]], teacher: Sequence[Float[Tensor, "B ..."]]
    ) -> dict[str, Float[Tensor, ""]]:
        """The features after every block → the method's losses by name, not yet weighed by β."""

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``feature/…`` and ``distill/student``."""
        features, logits = self.student_features(inputs, **context)
        theirs, target = self.teacher_features(inputs, **context)
        losses = self.feature_losses(features, theirs) if self.mixture.beta else {}
        return self.mixture.losses(logits, targets, target, losses)


class StageDistiller(FeatureDistiller):
    """``L = α · CE(Y^S, y) + β · Σ_i L_method(F_i^S, F_i^T) + w · d_L(Y^S, Y^T)``, over the blocks chosen.

    Args:
        teacher, student, example, beta: see ``FeatureDistiller``.
        stages: after which blocks: ``"all"``, ``"middle"`` (number (n+1)/2 of n), ``"last"``, or a list as ``[2, 3]``.
        shared: the other parameters of ``FeatureDistiller``.

    Raises:
        PartitionError: a network cannot be cut as asked.
        ValueError: weights or stages that do not fit, or features that the method cannot compare.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float,
        stages: Stages,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, beta=beta, **shared)
        self.stages = chosen_stages(stages, len(self.student_blocks))

    @abstractmethod
    def block_loss(self, i: int, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """The features ``F_i^S`` and ``F_i^T`` after block i → the method's loss, not yet weighed by β."""

    def feature_losses(
        self, student: Sequence[Float[Tensor, "B ..."]], teacher: Sequence[Float[Tensor, "B ..."]]
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses ``feature/block_i``."""
        return {f"feature/block_{i}": self.block_loss(i, student[i - 1], teacher[i - 1]) for i in self.stages}

    def pair(self, i: int) -> tuple[Feature, Feature]:
        """What the features of student and teacher after block i look like."""
        return self.student_blocks.features[i - 1], self.teacher_blocks.features[i - 1]

    def maps(
        self, i: int, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B D H W"]]:
        """The features after block i as maps on one grid; see ``on_one_grid``."""
        ours, theirs = (
            as_seen(feature, tuple(value.shape[1:]))
            for value, feature in zip((student, teacher), self.pair(i), strict=True)
        )
        return on_one_grid(student, ours, teacher, theirs)

    def require_places(self) -> None:
        """Raises ValueError where the features have no two places that could be compared."""
        for i in self.stages:
            check_places(type(self).__name__, i, *self.pair(i), "take a method for embeddings (PKT, RKD)")


def chosen_stages(stages: Stages, n: int) -> tuple[int, ...]:
    """The numbers of the blocks meant, in order.

    Raises:
        ValueError: none, one outside 1 … n, twice the same, or a word that means nothing here.
    """
    words: dict[str, Sequence[int]] = {"all": range(1, n + 1), "middle": [(n + 1) // 2], "last": [n]}
    chosen = words.get(stages, ()) if isinstance(stages, str) else stages
    if not chosen or not set(chosen) <= set(words["all"]) or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"stages is {stages!r}, expected 'all', 'middle', 'last', or different numbers among 1 … {n}: the networks "
            f"have {n} blocks"
        )
    return tuple(sorted(chosen))


def check_places(who: str, i: int, student: Feature, teacher: Feature, instead: str) -> None:
    """Raises ValueError when two features have no two places that could be compared.

    Args:
        who: what compares them.
        i: after which block they are.
        student, teacher: what they look like.
        instead: what else can be done.
    """
    height, width = common_grid(student, teacher)
    if height * width < 2:
        raise ValueError(
            f"{who} compares places, but the features after block {i} have none in common (student: {student}, "
            f"teacher: {teacher}): choose other stages, cut both networks before their pooling, or {instead}"
        )


def as_seen(feature: Feature, shape: tuple[int, ...]) -> Feature:
    """A feature of the shape it has now: inputs may be of another resolution than the example."""
    return feature if feature.shape == shape else Feature(shape, feature.layout)


def common_grid(student: Feature, teacher: Feature) -> tuple[int, int]:
    """``(H, W)`` of the grid on which two features can be compared without making places up.

    Sequences of equal length keep all their tokens, one below the other; a vector is a single place.
    """
    if student.layout == teacher.layout == "LD" and student.grid == teacher.grid:
        return student.area, 1
    grids = [feature.places if feature.grid else (1, 1) for feature in (student, teacher)]
    return min(grids[0][0], grids[1][0]), min(grids[0][1], grids[1][1])


def on_one_grid(
    student: Float[Tensor, "B ..."], ours: Feature, teacher: Float[Tensor, "B ..."], theirs: Feature
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B D H W"]]:
    """Both features as maps, the one with the larger grid averaged down to the other's.

    Channels may be laid out first or last; tokens lie on the lattice of their places, without a class token unless both
    are sequences of one length.

    Args:
        student, teacher: features ``(B, *shape)``.
        ours, theirs: what they look like.
    """
    grid = common_grid(ours, theirs)
    if ours.layout == theirs.layout == "LD" and ours.grid == theirs.grid:
        return student.mT.unsqueeze(-1), teacher.mT.unsqueeze(-1)
    maps = (
        to_maps(value, feature) if feature.grid else value[:, :, None, None]
        for value, feature in ((student, ours), (teacher, theirs))
    )
    left, right = (shrink(each, grid) for each in maps)
    return left, right
