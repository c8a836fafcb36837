"""OFD: features before the ReLU, margin ReLU on the teacher's side, partial L2 distance."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from blockkd.baselines.classifier import as_maps, random_like
from blockkd.baselines.numerics import widen
from blockkd.blocks import Blocks
from blockkd.blockwise import BlockwiseDistiller
from blockkd.connectors import connector
from blockkd.cuts import CutPoint
from blockkd.distiller import Losses, check_logits
from blockkd.examples import example_for
from blockkd.objectives import cross_entropy
from blockkd.partitioning import Survey
from blockkd.tracing import undisturbed


class OFD(BlockwiseDistiller):
    """Overhaul of feature distillation: ``L = α · CE(Y^S, y) + β · Σ_i 2^(i-n) · d_p(max(F_i^T, m_i), C_i(F_i^S))``.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866, section 3,
    equations 1 to 5. C_i is a 1×1 convolution with batch norm; d_p, the partial L2 distance, is summed over an
    example's elements, so that its weight is small; 2^(i-n) is the authors' code.

    *Features before the ReLU.* Stages end in a ReLU, so each cut is moved before the one that follows the stage, found
    by its values: in a ResNet the sum before the last ReLU of a stage, in a WideResNet the batch norm that opens the
    next one, as in the authors' code. Modules ``nn.ReLU`` that overwrite their input are told not to, which changes
    no value. Where no ReLU follows (linear bottlenecks), the stage's output is taken; where one has already acted and
    cannot be undone (``relu_`` written in a forward), there is a warning, and what is left of the method is that the
    teacher's zeros are not to be exceeded. ``Blocks`` made by hand are taken as they are.

    *Margins.* ``m_i``, one per channel, is the mean of the teacher's negative responses (equation 2), taken over the
    training batches as they come and kept with the checkpoint. The authors compute it from the last batch norm before
    the ReLU, as if its output were normal; that does not know of shortcuts added behind it, nor of other norms.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)``; frozen from here on.
        student: maps a batch to logits ``(B, K)``; trained in place.
        example: a batch of inputs ``(B, ...)``; when left out, a size that both networks accept is tried out.
        teacher_blocks, student_blocks, n_blocks: how to cut, as for ``BlockKD``.
        alpha: weight α of the labels.
        beta: weight β of the features; 1e-3 in the field.

    Raises:
        PartitionError: a network cannot be cut as asked.
        ValueError: a feature is no map.
    """

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
        beta: float = 1e-3,
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
        theirs, ours = self._blocks
        if not isinstance(teacher_blocks, Blocks):
            theirs = cut_before_relu(teacher, theirs, example, frozen=True)
        if not isinstance(student_blocks, Blocks):
            ours = cut_before_relu(student, ours, example)
        self._blocks = theirs, ours
        check_maps("OFD", *self._blocks)
        stages = range(1, len(ours) + 1)
        self.connect(stages, connector)
        self.margins = nn.ModuleDict({str(i): NegativeMean(theirs.features[i - 1].channels) for i in stages})
        self.margins.to(next(p for p in student.parameters() if p.is_floating_point()))
        self.alpha, self.beta = alpha, beta

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student`` and ``distill/block_i``."""
        features, logits = self.student_features(inputs, **context)
        check_logits(logits, targets)
        terms = {}
        if self.alpha:
            terms["task/student"] = self.alpha * cross_entropy(logits, targets)
        if self.beta:
            theirs, target_logits = self.teacher_features(inputs, **context)
            check_logits(logits, targets, target_logits)
            for i, (stage, connect) in enumerate(self.connectors.items()):
                layout = self.teacher_blocks.features[i].layout
                learner, target = (as_maps(value, layout) for value in (connect(features[i]), theirs[i]))
                distance = partial_l2(learner, target, self.margins[stage](target))
                terms[f"distill/block_{stage}"] = self.beta * 2.0 ** (i + 1 - len(features)) * distance
        return Losses.of(terms, logits)


def partial_l2(
    learner: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], margin: Float[Tensor, " C"]
) -> Float[Tensor, ""]:
    """The partial L2 distance to the teacher's feature behind a margin ReLU (OFD, equations 1 and 4).

    With ``t = max(target, margin)``, an element costs ``(t - s)²``, but nothing where ``s ≤ t ≤ 0``: where the teacher
    is silent, how deep the student's silence is does not matter.

    Args:
        learner: the student's feature in the teacher's space, ``(B, C, H, W)``.
        target: the teacher's feature before its ReLU, ``(B, C, H, W)``.
        margin: a negative number per channel, ``(C,)``.

    Returns:
        The sum over an example's elements, mean over the batch; float32 for half-precision input.
    """
    learner, target, margin = widen(learner), widen(target), widen(margin)
    target = torch.maximum(target, margin[:, None, None])
    silent = (learner <= target) & (target <= 0)
    return (target - learner).square().masked_fill(silent, 0.0).flatten(1).sum(dim=1).mean()


class NegativeMean(nn.Module):
    """The mean of the negative values of each channel over all that was seen in training (OFD, equation 2).

    A channel that never was negative has 0; its margin plays no part.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("count", torch.zeros(channels, dtype=torch.int64))

    @torch.no_grad()
    def forward(self, feature: Float[Tensor, "B C H W"]) -> Float[Tensor, " C"]:
        """Take the feature in while training → the mean of each channel, ``(C,)``."""
        if self.training:
            negative = feature < 0
            number = negative.sum(dim=(0, 2, 3))
            total = widen(feature).clamp(max=0).sum(dim=(0, 2, 3))
            self.count += number
            self.mean += ((total - number * self.mean) / self.count.clamp(min=1)).to(self.mean)
        return self.mean


def check_maps(method: str, *networks: Blocks) -> None:
    """Raises ValueError where a block gives tokens or vectors: ``method`` needs maps."""
    for blocks in networks:
        for name, feature in zip(blocks.names, blocks.features, strict=True):
            if feature.layout not in ("CHW", "HWC"):
                raise ValueError(
                    f"{method} needs maps, but {type(blocks.network).__name__} gives {feature} after {name!r}: cut it "
                    "where it still has a grid, or use a method for tokens and logits"
                )


def cut_before_relu(network: nn.Module, blocks: Blocks, example: Tensor, *, frozen: bool = False) -> Blocks:
    """The network cut at the same stages, each before the ReLU that ends or follows it.

    Args:
        network: the network behind ``blocks``; its ``nn.ReLU`` modules stop overwriting their input.
        blocks: the network as ``partition`` cuts it.
        example: a batch of inputs ``(B, ...)``.
        frozen: the network stays in evaluation mode, as a teacher does.
    """
    for module in network.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False  # else what it gets is gone before anybody can look at it
    survey = Survey(network, example)
    ends = survey.named(blocks.names)
    runs = [[p for p in survey.points if (p.depth, p.feature) == (end.depth, end.feature)] for end in ends]
    candidates = [point for run in runs for point in run]
    every = survey.cut(candidates, frozen=True)
    with torch.no_grad(), undisturbed(network, training=False):
        outputs, _ = every.run(random_like(example))
    values = dict(zip(candidates, outputs, strict=True))
    points = [_relu_input(run, values) or end for run, end in zip(runs, ends, strict=True)]
    lost = [point.name for point in points if not bool((values[point] < 0).any())]
    if lost and frozen:  # of any student's feature its connector can make what it needs
        warnings.warn(
            f"{survey.label} gives no negative value after {', '.join(lost)}, and what its ReLU gets cannot be looked "
            "at: the feature after the activation is used",
            stacklevel=3,
        )
    return survey.cut(points, frozen=frozen)


def _relu_input(run: Sequence[CutPoint], values: Mapping[CutPoint, Tensor]) -> CutPoint | None:
    """Of the places between two layers with weights, the input of the last ReLU."""
    for point, following in reversed(list(pairwise(run))):
        before, after = values[point], values[following]
        if bool((before < 0).any()) and any(torch.equal(after, x) for x in (before.relu(), before.clamp(0, 6))):
            return point
    return None
