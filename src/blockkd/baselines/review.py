"""ReviewKD: every stage of the teacher is taught to the student's stages up to and beyond it, from the deepest back."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.block_features import FeatureDistiller
from blockkd.baselines.heads import Head
from blockkd.baselines.numerics import widen
from blockkd.baselines.preactivation import check_maps, cut_before_relu
from blockkd.blocks import Blocks
from blockkd.connectors import to_maps
from blockkd.distiller import Losses
from blockkd.examples import example_for
from blockkd.schedules import warmup

MAX_WIDTH = 512  # channels in which features are fused, at most
PYRAMID = (4, 2, 1)  # grids of the hierarchical context loss beside the full one


class ReviewKD(FeatureDistiller):
    """Knowledge review: ``L = α · CE + β · min(1, epochs begun / warmup) · Σ_i HCL(ABF_i(…), F_i^T) + w · d_L``.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044, and the authors'
    public code. Going back from the last feature, attention-based fusion (ABF) merges the student's feature with what
    came from the deeper ones and maps it to the teacher's; the hierarchical context loss (HCL) compares on a pyramid.

    As in the authors' code: the features are those after each stage and, deepest of all, what the linear classifier
    gets, as a grid of one place; the teacher's are taken before their ReLU (see ``OFD`` for how), the student's after
    it; the loss grows linearly over the first 20 epochs, of which the first is counted as 1, not 0; each level's loss
    is a mean over batch and elements, which the weights below belong to, and the levels are summed.

    Args:
        teacher, student, example: see ``FeatureDistiller``; both networks end in a linear layer.
        beta: weight β of the features; 5 for most pairs in the field, 0.6 for ResNet56 → ResNet20, 1 for 110 → 32, 8
            for ShuffleNetV2.
        warmup_epochs: over how many epochs β is reached; 0 for from the start.
        shared: the other parameters of ``FeatureDistiller``.

    Raises:
        PartitionError: a network cannot be cut as asked.
        ValueError: a feature is no map, or a network does not end in a linear layer.
    """

    compiles: ClassVar[bool] = False  # hooks catch what the last layers are given
    fusions: nn.ModuleList

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        beta: float = 5.0,
        warmup_epochs: int = 20,
        **shared: Any,
    ) -> None:
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs is {warmup_epochs}, expected 0 or more (the authors take 20)")
        example = example_for(teacher, student) if example is None else example
        super().__init__(teacher, student, example, beta=beta, **shared)
        if not any(given is self.teacher_blocks for given in shared.values()):
            self._blocks = cut_before_relu(teacher, self.teacher_blocks, example, frozen=True), self.student_blocks
        check_maps("ReviewKD", *self._blocks)
        self.heads = Head(teacher, example=example), Head(student, example=example)
        self.fusions = self._make_fusions()
        self.fusions.to(next(p for p in student.parameters() if p.is_floating_point()))
        self.warmup_epochs = warmup_epochs

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``feature/review`` and ``distill/student``."""
        teacher_head, student_head = self.heads
        network = self.teacher
        assert network is not None
        self._adapt(inputs, **context)  # which may run the networks, so not while they are watched
        with student_head.watched(self.student) as ours:
            features, logits = self.student_features(inputs, **context)
        with teacher_head.watched(network) as theirs:
            their_features, target = self.teacher_features(inputs, **context)
        losses = {}
        if self.mixture.beta:
            losses = self.feature_losses(
                [*features, student_head.embedding(self.student, ours, logits)],
                [*their_features, teacher_head.embedding(network, theirs, target)],
            )
        return self.mixture.losses(logits, targets, target, losses)

    def feature_losses(
        self, student: Sequence[Float[Tensor, "B ..."]], teacher: Sequence[Float[Tensor, "B ..."]]
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss ``feature/review``, of the features after every block and what the linear classifier gets."""
        ours, theirs = _levels(student, self.student_blocks), _levels(teacher, self.teacher_blocks)
        reviewed = self._review(ours, [(level.shape[2], level.shape[3]) for level in theirs])
        losses = [hierarchical_context(a, b) for a, b in zip(reviewed, theirs, strict=True)]
        return {"feature/review": warmup(self.epoch, self.warmup_epochs) * torch.stack(losses).sum()}

    def _make_fusions(self) -> nn.ModuleList:
        networks = self.teacher, self.student
        theirs, ours = (
            [*(feature.channels for feature in blocks.features), head.linear(network).in_features]
            for blocks, head, network in zip(self._blocks, self.heads, networks, strict=True)
            if network is not None
        )
        width = min(MAX_WIDTH, ours[-1])
        last = len(ours) - 1
        return nn.ModuleList(
            AttentionFusion(a, width, b, fuses=i < last) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
        )

    def _review(self, features: list[Tensor], grids: list[tuple[int, int]]) -> list[Tensor]:
        """From the deepest feature back to the first; in the features' order, in the teacher's space."""
        reviewed: list[Tensor] = []
        deeper: Tensor | None = None
        for feature, fusion, grid in reversed(list(zip(features, self.fusions, grids, strict=True))):
            output, deeper = fusion(feature, deeper, grid)
            reviewed.insert(0, output)
        return reviewed


class AttentionFusion(nn.Module):
    """ABF: the feature and what came from the deeper ones, weighted place by place, then mapped to the teacher's.

    Source: ReviewKD, attention-based fusion. Weights start as the authors start them.

    Args:
        channels: of the student's feature.
        width: channels in which features are fused.
        out_channels: of the teacher's feature.
        fuses: whether something deeper comes in; not so for the deepest feature.
    """

    def __init__(self, channels: int, width: int, out_channels: int, fuses: bool) -> None:
        super().__init__()
        enter = nn.Conv2d(channels, width, 1, bias=False)
        leave = nn.Conv2d(width, out_channels, 3, padding=1, bias=False)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(width))
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(out_channels))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        for convolution in (enter, leave):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(
        self, feature: Float[Tensor, "B C H W"], deeper: Float[Tensor, "B M h w"] | None, grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "B D P Q"], Float[Tensor, "B M P Q"]]:
        """The student's feature and what came from the deeper ones → both on the teacher's grid.

        Args:
            feature: ``(B, C, H, W)``.
            deeper: ``(B, M, h, w)`` with M the width, None for the deepest.
            grid: of the teacher's feature, ``(P, Q)``.

        Returns:
            In the teacher's space ``(B, D, P, Q)``, and for the next shallower feature ``(B, M, P, Q)``.
        """
        fused: Tensor = self.enter(feature)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, size=fused.shape[2:], mode="nearest")
            share = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = fused * share[:, :1] + deeper * share[:, 1:]
        if fused.shape[2:] != grid:
            fused = F.interpolate(fused, size=grid, mode="nearest")
        return self.leave(fused), fused


def hierarchical_context(learner: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """HCL: mean squared error on the full grid and on averages over 4×4, 2×2 and 1×1 cells.

    Source: ReviewKD, hierarchical context loss. Level j, from 0, has the weight ``2^-j``, divided by the sum of all
    weights; a grid that is not smaller than the feature's own is left out, and takes no weight.

    Args:
        learner: what learns, ``(B, C, H, W)``.
        target: what is to be learned, ``(B, C, H, W)``.

    Returns:
        A scalar; float32 for half-precision input.
    """
    learner, target = widen(learner), widen(target)
    losses = [F.mse_loss(learner, target)]
    for side in PYRAMID:
        if side < min(learner.shape[2:]):
            losses.append(F.mse_loss(F.adaptive_avg_pool2d(learner, side), F.adaptive_avg_pool2d(target, side)))
    weights = [2.0**-j for j in range(len(losses))]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)


def _levels(features: Sequence[Float[Tensor, "B ..."]], blocks: Blocks) -> list[Float[Tensor, "B C H W"]]:
    """The maps after each stage, and the vector behind them as a map of one place."""
    *values, vector = features
    maps = [to_maps(value, feature) for value, feature in zip(values, blocks.features, strict=True)]
    return [*maps, vector[:, :, None, None]]
