"""ReviewKD: every stage of the teacher is taught to the student's stages up to and beyond it, from the deepest back."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.classifier import as_maps, final_linear, inputs_of
from blockkd.baselines.numerics import widen
from blockkd.baselines.overhaul import check_maps, cut_before_relu
from blockkd.blocks import Blocks
from blockkd.blockwise import BlockwiseDistiller
from blockkd.distiller import Losses, check_logits
from blockkd.examples import example_for
from blockkd.objectives import cross_entropy

MAX_WIDTH = 512  # channels in which features are fused, at most
PYRAMID = (4, 2, 1)  # grids of the hierarchical context loss beside the full one


class ReviewKD(BlockwiseDistiller):
    """Knowledge review: ``L = α · CE(Y^S, y) + β · min(1, epochs begun / warmup) · Σ_i HCL(ABF_i(…), F_i^T)``.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044, section 3, equations
    5 to 8. Going back from the last feature, attention-based fusion (ABF) merges the student's feature with what came
    from the deeper ones and maps it to the teacher's; the hierarchical context loss (HCL) compares on a pyramid.

    As in the authors' code: the features are those after each stage and, deepest of all, what the linear classifier
    gets, as a grid of one place; the teacher's are taken before their ReLU (see ``OFD`` for how), the student's after
    it; the loss grows linearly over the first 20 epochs, of which the first is counted as 1, not 0.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)`` by a final linear layer; frozen from here on.
        student: maps a batch to logits ``(B, K)`` by a final linear layer; trained in place.
        example: a batch of inputs ``(B, ...)``; when left out, a size that both networks accept is tried out.
        teacher_blocks, student_blocks, n_blocks: how to cut, as for ``BlockKD``.
        alpha: weight α of the labels.
        beta: weight β of the features; 5 for most pairs in the field, 0.6 for ResNet56 → ResNet20, 1 for 110 → 32, 8
            for ShuffleNetV2.
        warmup_epochs: over how many epochs β is reached; 0 for from the start.

    Raises:
        PartitionError: a network cannot be cut as asked.
        ValueError: a feature is no map, or a network does not end in a linear layer.
    """

    fusions: nn.ModuleList

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        teacher_blocks: Blocks | Sequence[str] | None = None,
        student_blocks: Blocks | Sequence[str] | None = None,
        n_blocks: int | None = None,
        alpha: float = 1.0,
        beta: float = 5.0,
        warmup_epochs: int = 20,
    ) -> None:
        example = example_for(teacher, student) if example is None else example
        super().__init__(
            teacher,
            student,
            example,
            teacher_blocks=teacher_blocks,
            student_blocks=student_blocks,
            n_blocks=n_blocks,
        )
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs is {warmup_epochs}, expected 0 or more (the authors take 20)")
        if not isinstance(teacher_blocks, Blocks):
            self._blocks = cut_before_relu(teacher, self.teacher_blocks, example, frozen=True), self.student_blocks
        check_maps("ReviewKD", *self._blocks)
        self._linears = final_linear(student, example), final_linear(teacher, example)
        self.fusions = self._make_fusions()
        self.fusions.to(next(p for p in student.parameters() if p.is_floating_point()))
        self.alpha, self.beta, self.warmup_epochs = alpha, beta, warmup_epochs

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student`` and ``distill/review``."""
        with inputs_of(self._linears[0]) as seen:
            features, logits = self.student_features(inputs, **context)
        ours = _levels(features, self.student_blocks, seen[-1])
        check_logits(logits, targets)
        terms = {}
        if self.alpha:
            terms["task/student"] = self.alpha * cross_entropy(logits, targets)
        if self.beta:
            with inputs_of(self._linears[1]) as seen:
                features, target_logits = self.teacher_features(inputs, **context)
            check_logits(logits, targets, target_logits)
            theirs = _levels(features, self.teacher_blocks, seen[-1])
            reviewed = self._review(ours, [(level.shape[2], level.shape[3]) for level in theirs])
            losses = [hierarchical_context(a, b) for a, b in zip(reviewed, theirs, strict=True)]
            terms["distill/review"] = self.beta * self.warmup() * torch.stack(losses).sum()
        return Losses.of(terms, logits)

    def warmup(self) -> float:
        """The share of β that counts in this epoch, above 0 and up to 1."""
        return min((self.epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0

    def _make_fusions(self) -> nn.ModuleList:
        ours, theirs = (
            [*(feature.channels for feature in blocks.features), linear.in_features]
            for blocks, linear in zip((self.student_blocks, self.teacher_blocks), self._linears, strict=True)
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

    Source: ReviewKD, section 3.3, figure 3 (a). Weights start as the authors start them.

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

    Source: ReviewKD, section 3.3, figure 3 (b). Level j, from 0, has the weight ``2^-j``, divided by the sum of all
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


def _levels(features: Sequence[Tensor], blocks: Blocks, vector: Float[Tensor, "B D"]) -> list[Tensor]:
    """The maps after each stage, and the classifier's input as a map of one place."""
    maps = [as_maps(value, feature.layout) for value, feature in zip(features, blocks.features, strict=True)]
    return [*maps, vector[:, :, None, None]]
