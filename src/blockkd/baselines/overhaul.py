"""OFD: features before the ReLU, margin ReLU on the teacher's side, partial L2 distance."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.baselines.block_features import StageDistiller, Stages, common_grid
from blockkd.baselines.numerics import widen
from blockkd.baselines.preactivation import check_maps, cut_before_relu
from blockkd.connectors import MapConnector, shrink, to_maps
from blockkd.examples import example_for
from blockkd.features import Feature
from blockkd.ranks import summed


class OFD(StageDistiller):
    """Overhaul of feature distillation: ``L = α · CE(Y^S, y) + β · Σ_i 2^(i-n) · d_p(max(F_i^T, m_i), C_i(F_i^S))``.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866, and the
    authors' public code, of which 2^(i-n) is. C_i is a 1×1 convolution with batch norm. The partial L2 distance d_p is
    a sum over an example's elements, which the weight 1e-3 belongs to; where the grids differ, it is taken on the
    smaller one, to which the other feature is averaged, as mdistiller does.

    *Features before the ReLU.* Stages end in a ReLU, so each cut is moved before the one that follows the stage, found
    by its values: in a ResNet the sum before the last ReLU of a stage, in a WideResNet the batch norm that opens the
    next one, as in the authors' code. Modules ``nn.ReLU`` that overwrite their input are told not to, which changes
    no value. Where no ReLU follows (linear bottlenecks), the stage's output is taken; where one has already acted and
    cannot be undone (``relu_`` written in a forward), there is a warning, and what is left of the method is that the
    teacher's zeros are not to be exceeded. ``Blocks`` made by hand are taken as they are.

    *Margins.* ``m_i``, one per channel, is the mean of the teacher's negative responses, taken over the training
    batches as they come and kept with the checkpoint. The authors compute it from the last batch norm before the ReLU,
    as if its output were normal; that does not know of shortcuts added behind it, nor of other norms.

    Args:
        teacher, student, example: see ``StageDistiller``.
        beta: weight β of the features.
        stages: after which blocks; see ``StageDistiller``.
        shared: the other parameters of ``StageDistiller``.

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
        beta: float = 1e-3,
        stages: Stages = "all",
        **shared: Any,
    ) -> None:
        example = example_for(teacher, student) if example is None else example
        super().__init__(teacher, student, example, beta=beta, stages=stages, **shared)
        theirs, ours = self._blocks
        given = [id(value) for value in shared.values()]
        if id(theirs) not in given:
            theirs = cut_before_relu(teacher, theirs, example, frozen=True)
        if id(ours) not in given:
            ours = cut_before_relu(student, ours, example)
        self._blocks = theirs, ours
        check_maps("OFD", theirs, ours)
        self.connect(self.stages, SmallerGrid)
        self.margins = nn.ModuleDict({str(i): NegativeMean(theirs.features[i - 1].channels) for i in self.stages})
        self.margins.to(next(p for p in student.parameters() if p.is_floating_point()))

    def block_loss(self, i: int, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """``2^(i-n) · d_p`` at block i."""
        learner = self.connectors[str(i)](student)
        target = to_maps(teacher, self.teacher_blocks.features[i - 1])
        margin = self.margins[str(i)](target)
        distance = partial_l2(learner, shrink(target, (learner.shape[2], learner.shape[3])), margin)
        return 2.0 ** (i - len(self.student_blocks)) * distance


class SmallerGrid(MapConnector):
    """The student's map in the teacher's channels, on the smaller of both grids.

    Args:
        student: the student's feature, a map.
        teacher: the teacher's.
    """

    def __init__(self, student: Feature, teacher: Feature) -> None:
        super().__init__(student, _on_common_grid(student, teacher))

    def fit(self, student: Feature, teacher: Feature) -> None:
        """Connect features of another resolution from now on."""
        super().fit(student, _on_common_grid(student, teacher))


def _on_common_grid(student: Feature, teacher: Feature) -> Feature:
    return Feature((teacher.channels, *common_grid(student, teacher)), "CHW")


def partial_l2(
    learner: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], margin: Float[Tensor, " C"]
) -> Float[Tensor, ""]:
    """The partial L2 distance to the teacher's feature behind a margin ReLU (see ``OFD``).

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
    """The mean of the negative values of each channel over all that was seen in training.

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
            number = summed(negative.sum(dim=(0, 2, 3)))
            total = summed(widen(feature).clamp(max=0).sum(dim=(0, 2, 3)))
            self.count += number
            self.mean += ((total - number * self.mean) / self.count.clamp(min=1)).to(self.mean)
        return self.mean
