"""Four ways to align features, under one switch: Fig. 2 (a) to (d) of the Block-KD paper (arXiv 2411.01547)."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from blockkd.baselines.block_features import as_seen, check_places, on_one_grid
from blockkd.baselines.features import attention_loss, hint_loss
from blockkd.baselines.logits import kd_terms
from blockkd.blockwise import BlockwiseDistiller
from blockkd.connectors import connector
from blockkd.distances import KL, LogitDistance
from blockkd.distiller import Losses
from blockkd.features import Feature
from blockkd.stones import Stones, chosen_stones, stone_logits

Way = Literal["two_projections", "one_mapping", "consolidated", "implicit"]

# The distances have different scales. Those of attention maps are weighed as in AT; mapped features by a tenth of
# FitNet's 100, which belongs to the middle block alone: here the last counts most, whose feature is the largest.
USUAL_WEIGHTS: dict[str, float] = {
    "two_projections": 1000.0,
    "one_mapping": 10.0,
    "consolidated": 1000.0,
    "implicit": 1.0,
}


class FeatureAlignment(BlockwiseDistiller):
    """Features aligned in one of four ways, all else being equal.

    ``L = α · CE(Y^S, y) + β · d_L(Y^S, Y^T) + γ · Σ_i w_i · A_i`` with, at block i, of the student's feature ``F_i^S``
    and the teacher's ``F_i^T``::

        two_projections   A_i = ‖M(F_i^S) - M(F_i^T)‖²           Fig. 2 (a); M: attention maps
        one_mapping       A_i = ‖C_i(F_i^S) - F_i^T‖²            Fig. 2 (b); C_i: connector
        consolidated      A_i = ‖M(C_i(F_i^S)) - M(F_i^T)‖²      Fig. 2 (c)
        implicit          A_i = d_L(Y^{N_i}, Y^T)                Fig. 2 (d); N_i: stepping stone

    The last is Block-KD's, without the stones' labels and ``L_cross``: the rest of the teacher takes the place of M.
    ``‖·‖²`` is the mean over batch and elements. For M the paper leaves the choice open; attention maps are the
    best known one.

    Source: Yu et al., arXiv 2411.01547, Fig. 2; attention maps from Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928.

    Args:
        teacher, student, example: see ``BlockwiseDistiller``.
        way: how features are aligned.
        stages: at which blocks: ``"all"``, ``"last"``, or a list such as ``[2, 3]``.
        make_connector: (student feature, teacher feature) → connector ``C_i``; ``blockkd.connector`` by default.
        alpha, beta: the weights α of the labels and β of the student's own logit distillation.
        gamma: the weight γ of the alignment; by default 1000 with attention maps (as AT), 10 for mapped features, 1 for
            logits, with which the gradients of all ways are of one order at the start. Not tuned: compare each way at
            its own best γ.
        stage_weights: the weights w_i, one for each block chosen; by default ``1 / 2^(n-i)``, as for stones.
        distance: the logit distance ``d_L``; by default ``KL(temperature=4)``.
        shared: the other parameters of ``BlockwiseDistiller``, which say how to cut.

    Raises:
        PartitionError: a network cannot be cut as asked.
        ValueError: a way that there is not, stages or weights that do not fit, or features without attention maps.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        way: Way = "implicit",
        stages: Stones = "all",
        make_connector: Callable[[Feature, Feature], nn.Module] = connector,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float | None = None,
        stage_weights: Sequence[float] | None = None,
        distance: LogitDistance | None = None,
        **shared: Any,
    ) -> None:
        if way not in USUAL_WEIGHTS:
            raise ValueError(f"way is {way!r}, expected one of {', '.join(USUAL_WEIGHTS)}")
        super().__init__(teacher, student, example, **shared)
        self.way: Way = way
        n = len(self.student_blocks)
        self.stages = chosen_stones(stages, n)
        weights = [2.0 ** (i - n) for i in self.stages] if stage_weights is None else stage_weights
        if len(weights) != len(self.stages):
            raise ValueError(f"stage_weights has {len(weights)} weights, expected one for each of {self.stages}")
        self.stage_weights = dict(zip(self.stages, weights, strict=True))
        self._check_features()
        if way != "two_projections":
            self.connect(self.stages, make_connector)
        self.alpha, self.beta = alpha, beta
        self.gamma = USUAL_WEIGHTS[way] if gamma is None else gamma
        self.distance = distance if distance is not None else KL()

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``distill/student`` and ``align/block_i``."""
        ours, logits = self.student_features(inputs, **context)
        theirs, target = self.teacher_features(inputs, **context)
        terms = kd_terms(logits, targets, target, self.alpha, self.beta, self.distance)
        used = {i: weight for i, weight in self.stage_weights.items() if weight and self.gamma}
        if self.way == "implicit":
            connected = {i: self.connectors[str(i)](ours[i - 1]) for i in used}
            stones = stone_logits(self.teacher_blocks, connected, **context) if used else {}
            apart = {i: self.distance(stone, target, targets) for i, stone in stones.items()}
        else:
            apart = {i: self._apart(i, ours[i - 1], theirs[i - 1]) for i in used}
        terms |= {f"align/block_{i}": self.gamma * used[i] * apart[i] for i in used}
        return Losses.of(terms, logits)

    def _apart(self, i: int, ours: Float[Tensor, "B ..."], theirs: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """``A_i`` of the three explicit ways."""
        if self.way != "two_projections":
            ours = self.connectors[str(i)](ours)
        if self.way == "one_mapping":
            return hint_loss(ours, theirs)
        seen = [
            as_seen(feature, tuple(value.shape[1:]))
            for value, feature in zip((ours, theirs), self._compared(i), strict=True)
        ]
        return attention_loss(*on_one_grid(ours, seen[0], theirs, seen[1]))

    def _compared(self, i: int) -> tuple[Feature, Feature]:
        """What the two features look like whose attention maps are compared."""
        theirs = self.teacher_blocks.features[i - 1]
        return self.student_blocks.features[i - 1] if self.way == "two_projections" else theirs, theirs

    def _check_features(self) -> None:
        if self.way not in ("two_projections", "consolidated"):
            return
        for i in self.stages:
            check_places(f"way {self.way!r}", i, *self._compared(i), "take way='one_mapping' or 'implicit'")
