"""SimKD: the teacher's classifier, reused on top of the student's projected feature."""

import copy

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.features import hint_loss
from blockkd.baselines.heads import Head, cut_before_pooling
from blockkd.blocks import Blocks
from blockkd.blockwise import BlockwiseDistiller
from blockkd.connectors import to_maps
from blockkd.distiller import Losses, check_logits
from blockkd.examples import example_for
from blockkd.features import Feature


class SimKD(BlockwiseDistiller):
    """The teacher's classifier on top of the student's projected feature: ``L = ‖F^T - P(F^S)‖²``, mean over elements.

    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv 2203.14001, and
    the authors' public code, of which reduction and weight are. F is the last map before global average pooling. The
    projector P is the authors': 1×1, 3×3 and 1×1 convolutions, each with batch norm and ReLU, over ``C^T / r``
    channels; the larger of two grids is averaged down to the smaller. No label and no logit is learned from.

    The student grows: what is deployed is its body, P, and the teacher's classifier. From here on ``student`` is that
    network (``deployable()``), so that what is validated, saved and counted is what was trained. The student's own
    classifier goes unused; it is frozen as it is.

    Args:
        teacher: trained; ends in global average pooling and one linear layer; frozen from here on.
        student: ends in global average pooling and one linear layer; trained in place.
        example: a batch of inputs ``(B, ...)``; when left out, a size that both networks accept is tried out.
        weight: weight of the loss; 1 in the authors' experiments, alone.
        reduction: r, by how much the projector is narrower inside than the teacher's feature; the authors report 2, 4
            and 8, and run 2 unless told otherwise.

    Raises:
        ValueError: a network does not end in global average pooling and one linear layer, or ``reduction`` leaves no
            channel.
    """

    student: "ReusedClassifier"

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        weight: float = 1.0,
        reduction: int = 2,
    ) -> None:
        example = example_for(teacher, student) if example is None else example
        if not weight > 0:
            raise ValueError(f"weight is {weight}, expected above zero: SimKD has no other loss")
        heads = Head(teacher, example=example), Head(student, example=example)
        theirs = cut_before_pooling(teacher, heads[0], example, frozen=True)
        ours = cut_before_pooling(student, heads[1], example)
        super().__init__(teacher, student, example, teacher_blocks=theirs, student_blocks=ours)
        self.weight = weight
        heads[1].linear(student).requires_grad_(False)
        classifier = copy.deepcopy(heads[0].linear(teacher))
        projector = Projector(ours.features[0], theirs.features[0], reduction)
        self.student = ReusedClassifier(student, ours, projector, classifier)

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the loss ``feature/map``; the logits are those of the network that is deployed."""
        self._adapt(inputs, **context)
        projected = self.student.projected(inputs, **context)
        (feature,), target = self.teacher_features(inputs, **context)
        feature = to_maps(feature, self.teacher_blocks.features[0])
        logits = self.student.classify(projected)
        check_logits(logits, targets, target)
        feature = F.adaptive_avg_pool2d(feature, (projected.shape[2], projected.shape[3]))
        return Losses.of({"feature/map": self.weight * hint_loss(projected, feature)}, logits)

    def deployable(self) -> "ReusedClassifier":
        """The network to deploy: student body, projector, teacher's classifier; images → logits ``(B, K)``."""
        return self.student


class Projector(nn.Module):
    """SimKD's projector: average down to the teacher's grid where it is smaller, then 1×1, 3×3, 1×1 convolutions.

    Args:
        student: the student's last map.
        teacher: the teacher's last map.
        reduction: by how much it is narrower inside than the teacher's feature.

    Raises:
        ValueError: ``reduction`` leaves no channel.
    """

    def __init__(self, student: Feature, teacher: Feature, reduction: int) -> None:
        super().__init__()
        if not 1 <= reduction <= teacher.channels:
            raise ValueError(f"reduction is {reduction}, expected 1 … {teacher.channels} (the teacher's channels)")
        width = teacher.channels // reduction
        # As a share of the grid, so that inputs of another resolution keep it, also where no teacher is left.
        self.shrink = [min(1.0, t / s) for s, t in zip(student.grid, teacher.grid, strict=True)]
        self.layers = nn.Sequential(
            *_activated(nn.Conv2d(student.channels, width, 1, bias=False)),
            *_activated(nn.Conv2d(width, width, 3, padding=1, bias=False)),
            *_activated(nn.Conv2d(width, teacher.channels, 1, bias=False)),
        )

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The student's map → the teacher's channels, on the smaller of both grids."""
        height, width = (max(1, round(n * share)) for n, share in zip(maps.shape[2:], self.shrink, strict=True))
        if (height, width) != tuple(maps.shape[2:]):
            maps = F.adaptive_avg_pool2d(maps, (height, width))
        projected: Tensor = self.layers(maps)
        return projected


class ReusedClassifier(nn.Module):
    """What SimKD deploys: the student's body, the projector, the teacher's classifier.

    The student's parameters are found under ``network.``, with their own names; its classifier is among them, unused.

    Args:
        network: the student.
        blocks: the student, cut before its global average pooling.
        projector: the student's last map → the space of the teacher's.
        classifier: the teacher's last layer, a copy; frozen.
    """

    def __init__(self, network: nn.Module, blocks: Blocks, projector: Projector, classifier: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self.projector = projector.to(next(p for p in network.parameters() if p.is_floating_point()))
        self.classifier = classifier.requires_grad_(False)
        self._blocks = (blocks,)  # in a tuple: its parts are the network's, which is registered

    def projected(self, inputs: Tensor, **context: Float[Tensor, "B ..."]) -> Float[Tensor, "B C H W"]:
        """Inputs → the student's last map in the space of the teacher's."""
        (blocks,) = self._blocks
        maps = to_maps(blocks.blocks[0](inputs, **context), blocks.features[0])
        projected: Tensor = self.projector(maps)
        return projected

    def classify(self, projected: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Projected map → logits ``(B, K)`` of the teacher's classifier."""
        logits: Tensor = self.classifier(projected.mean(dim=(2, 3)))
        return logits

    def forward(self, inputs: Tensor, **context: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
        """Inputs → logits ``(B, K)``."""
        return self.classify(self.projected(inputs, **context))


def _activated(convolution: nn.Conv2d) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
