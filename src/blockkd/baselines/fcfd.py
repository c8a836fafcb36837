"""Function-consistent feature distillation: features are alike when the later layers do alike things with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from blockkd.baselines.bridges import Bridges
from blockkd.baselines.features import hint_loss
from blockkd.baselines.logits import kd_terms
from blockkd.blocks import Blocks
from blockkd.blockwise import BlockwiseDistiller
from blockkd.distances import KL, LogitDistance
from blockkd.distiller import Losses
from blockkd.randomness import derived_seed
from blockkd.ranks import of_first_rank, ranks
from blockkd.schedules import warmup
from blockkd.tracing import undisturbed


@dataclass(frozen=True)
class MixedPath:
    """A network that starts as one and ends as the other.

    Attributes:
        prefix: whose blocks come first.
        after: the number of its last block, 1 … n-1; a bridge leads from there to the other network's next block.
    """

    prefix: Literal["student", "teacher"]
    after: int


class FCFD(BlockwiseDistiller):
    """Function-consistent feature distillation.

    Of the 2(n-1) mixed paths (student blocks 1 … i, bridge, teacher blocks i+1 … n, and the other way round) some are
    drawn at random in each step. With ``Y^m`` the logits of a drawn path, ``B_i`` the bridges and ``F_i^m`` the
    teacher-side features of drawn paths that start as student::

        L = α · CE(Y^S, y) + β · d_L(Y^S, Y^T) + μ · Σ_m d_L(Y^m, Y^T)
          + λ · min(e / E, 1) · Σ_i [‖B_i(F_i^S) - F_i^T‖² + Σ_m ‖F_i^m - F_i^T‖²]               in epoch e = 1, 2, …

    where at the last block the distance between the features after ReLU and global pooling is added to that of the
    features. ``‖·‖²`` is the mean over batch and elements. Mixed paths see no labels.

    A mixed path normalises by the statistics of its own batch, in the teacher's and in the student's batch norm alike
    (the distribution that reaches them is not the one that their running statistics describe), and leaves no trace
    in the running statistics of either. In evaluation mode no path is drawn.

    Source: Liu, Kan, Shan, Chen, "Function-Consistent Feature Distillation", ICLR 2023, arXiv 2304.11832, and the
    authors' public code. Differences to that code: the teacher itself stays in evaluation mode (there its own batch
    norm runs, and moves, on batch statistics while the student trains); cuts are those of the partition, and whether a
    bridge ends in LeakyReLU is told from the target network's feature there, which has no negative values where it is
    activated. The authors train with Nesterov momentum and choose by pair: λ = 5 (0.02 for ResNet56 → ResNet20, and
    for ResNet34 → ResNet18 on ImageNet), τ = 4 (8 for ResNet32x4 → ShuffleNetV1 and V2 and for ResNet50 → MobileNetV2,
    1 on ImageNet), μ = 1 (0.2 for WRN-40-2 → WRN-16-2). For ResNet110 → ResNet32 they give none.

    Args:
        teacher, student, example: see ``BlockwiseDistiller``.
        alpha: weight α of the labels.
        beta: weight β of the student's own logit distillation.
        mixed_weight: weight μ of the mixed paths; 0 leaves them out, with their part of the feature distances.
        feature_weight: weight λ of the feature distances.
        paths: how many different mixed paths to draw in each step, 1 … 2(n-1).
        warmup_epochs: E, over how many epochs the weight of the feature distances grows to λ; 0 for λ at once.
        distance: the logit distance ``d_L``; by default ``KL(temperature=4)``.
        shared: the other parameters of ``BlockwiseDistiller``, which say how to cut, into at least two blocks.

    Raises:
        PartitionError: a network cannot be cut as asked.
        ValueError: features that are no maps, fewer than two blocks, or a number of paths that there is not.
    """

    reads_batch_norm: ClassVar[bool] = True
    compiles: ClassVar[bool] = False  # each step draws its paths
    leaves_unused = True  # the bridges of paths that are not drawn

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        mixed_weight: float = 1.0,
        feature_weight: float = 5.0,
        paths: int = 2,
        warmup_epochs: int = 20,
        distance: LogitDistance | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, **shared)
        self.candidates = _candidates(len(self.student_blocks), paths)
        self._build_bridges()
        self.alpha, self.beta = alpha, beta
        self.mixed_weight, self.feature_weight = mixed_weight, feature_weight
        self.paths, self.warmup_epochs = paths, warmup_epochs
        self.distance = distance if distance is not None else KL()
        # Drawn from the run's seed and the number of steps: so all ranks draw alike, and nobody else's numbers move.
        self._seed, self._step, self._agreed = derived_seed(torch.initial_seed()), 0, False

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``distill/student``, ``distill/mixed``, ``feature/block_i``."""
        ours, logits = self.student_features(inputs, **context)
        theirs, target = self.teacher_features(inputs, **context)
        terms = kd_terms(logits, targets, target, self.alpha, self.beta, self.distance)
        drawn = self.draw_paths() if self.mixed_weight and self.training else []
        starts = {path.after for path in drawn if path.prefix == "student"}
        bridged = {
            i: self.connectors[str(i)](feature)
            for i, feature in enumerate(ours, start=1)
            if self.feature_weight or i in starts
        }
        mixed = [self._run(path, theirs, bridged, **context) for path in drawn]
        if mixed:
            apart = [self.distance(path_logits, target, targets) for _, path_logits in mixed]
            terms["distill/mixed"] = self.mixed_weight * torch.stack(apart).sum()
        if self.feature_weight:
            weight = self.feature_weight * warmup(self.epoch, self.warmup_epochs)
            for i, feature in bridged.items():
                alike = [feature, *(features[i] for features, _ in mixed if i in features)]
                terms[f"feature/block_{i}"] = weight * self._features_apart(i, alike, theirs[i - 1])
        return Losses.of(terms, logits)

    def draw_paths(self) -> list[MixedPath]:
        """Other paths at each call, all different within a call; the same again for the same seed and call."""
        if ranks() > 1 and not self._agreed:  # on other paths the ranks would wait for each other forever
            like = next(self.parameters())
            self._seed, self._step = of_first_rank(torch.tensor([self._seed, self._step], device=like.device)).tolist()
            self._agreed = True
        generator = torch.Generator().manual_seed(derived_seed(self._seed, self._step))
        self._step += 1
        order = torch.randperm(len(self.candidates), generator=generator)
        return [self.candidates[j] for j in order[: self.paths].tolist()]

    def get_extra_state(self) -> Int[Tensor, "2"]:
        """How far the draws are, for checkpoints."""
        return torch.tensor([self._seed, self._step])

    def set_extra_state(self, state: Int[Tensor, "2"]) -> None:
        """Go on with the draws of a checkpoint."""
        self._seed, self._step = state.tolist()
        self._agreed = False

    def _run(
        self,
        path: MixedPath,
        theirs: Sequence[Float[Tensor, "B ..."]],
        bridged: dict[int, Float[Tensor, "B ..."]],
        **context: Float[Tensor, "B ..."],
    ) -> tuple[dict[int, Float[Tensor, "B ..."]], Float[Tensor, "B K"]]:
        """The teacher-side features of a mixed path by block, and its logits."""
        if path.prefix == "student":
            tail, x = self.teacher_blocks, bridged[path.after]
        else:
            bridges = self.connectors[str(path.after)]
            assert isinstance(bridges, Bridges)
            tail, x = self.student_blocks, bridges.back(theirs[path.after - 1])
        features = {}
        with own_batch_statistics(tail):
            for i in range(path.after + 1, len(tail) + 1):
                x = tail.blocks[i - 1](x, **context)
                features[i] = x
            logits: Tensor = tail.classifier(x, **context)
        return (features if path.prefix == "student" else {}), logits

    def _features_apart(
        self, i: int, learners: Sequence[Float[Tensor, "B ..."]], target: Float[Tensor, "B ..."]
    ) -> Float[Tensor, ""]:
        apart = [hint_loss(learner, target) for learner in learners]
        if i == len(self.teacher_blocks):
            places = (1, 2) if self.teacher_blocks.features[i - 1].layout == "HWC" else (2, 3)
            pooled = F.relu(target).mean(places)
            apart += [hint_loss(F.relu(learner).mean(places), pooled) for learner in learners]
        return torch.stack(apart).sum()

    def _build_bridges(self) -> None:
        n = len(self.student_blocks)
        probe = self._probe()
        to_teacher, to_student = (activated(blocks, probe) for blocks in (self.teacher_blocks, self.student_blocks))
        for i in range(1, n + 1):
            home = to_student[i - 1] if i < n else None
            self.connect([i], partial(Bridges, to_teacher=to_teacher[i - 1], to_student=home))

    def _probe(self) -> Tensor:
        weight = next(p for p in self.student.parameters() if p.is_floating_point())
        return torch.randn(2, *self._input_shape, generator=torch.Generator().manual_seed(0)).to(weight)


def _candidates(n: int, paths: int) -> list[MixedPath]:
    if n < 2:
        raise ValueError("there is one block only, so no path can change networks on the way; cut into two or more")
    found = [MixedPath(prefix, i) for prefix in ("teacher", "student") for i in range(1, n)]
    if not 1 <= paths <= len(found):
        raise ValueError(
            f"paths is {paths}, expected 1 … {len(found)}: networks of {n} blocks have {len(found)} mixed paths "
            "(mixed_weight=0 leaves them out)"
        )
    return found


@torch.no_grad()
def activated(blocks: Blocks, probe: Float[Tensor, "B ..."]) -> list[bool]:
    """Whether the feature after each block holds no negative value, as after a ReLU.

    Args:
        blocks: a network, cut.
        probe: inputs ``(B, ...)`` to try it out with.
    """
    with undisturbed(blocks.network, training=False):
        return [bool((feature >= 0).all()) for feature in blocks.run(probe)[0]]


@contextmanager
def own_batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norm use the statistics of the batch, in whatever mode it is, and leave its running ones alone."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm, norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, training, tracked in before:
            norm.training, norm.track_running_stats = training, tracked
