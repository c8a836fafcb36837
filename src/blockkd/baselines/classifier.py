"""Methods that go through the final linear classifier: SimKD reuses the teacher's, CAT-KD reads both as maps."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.numerics import widen
from blockkd.blocks import Blocks
from blockkd.blockwise import BlockwiseDistiller
from blockkd.cuts import CutPoint
from blockkd.distiller import Losses, check_logits
from blockkd.examples import example_for
from blockkd.features import Feature, Layout
from blockkd.objectives import cross_entropy
from blockkd.partitioning import Survey
from blockkd.tracing import undisturbed

LAST_POINTS = 8  # pooling and classifier are looked for among so many cut points from the end
SMALLEST_NORM = 1e-8  # up to which a class activation map counts as empty


class SimKD(BlockwiseDistiller):
    """The teacher's classifier on top of the student's projected feature: ``L = ‖F^T - P(F^S)‖²``, mean over elements.

    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv 2203.14001,
    section 3.2, equation 3. F is the last map before global average pooling. The projector P is the paper's: 1×1, 3×3
    and 1×1 convolutions, each with batch norm and ReLU, over ``C^T / r`` channels; the larger of two grids is averaged
    down to the smaller. No label and no logit is learned from.

    The student grows: what is deployed is its body, P, and the teacher's classifier. From here on ``student`` is that
    network (``deployable()``), so that what is validated, saved and counted is what was trained. The student's own
    classifier goes unused; it is frozen as it is.

    Args:
        teacher: trained; ends in global average pooling and one linear layer; frozen from here on.
        student: ends in global average pooling and one linear layer; trained in place.
        example: a batch of inputs ``(B, ...)``; when left out, a size that both networks accept is tried out.
        weight: weight of the loss; 1 in the authors' experiments, alone.
        reduction: r, by how much the projector is narrower inside than the teacher's feature.

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
        theirs, ours = cut_before_pooling(teacher, example, frozen=True), cut_before_pooling(student, example)
        super().__init__(teacher, student, example, teacher_blocks=theirs, student_blocks=ours)
        if not weight > 0:
            raise ValueError(f"weight is {weight}, expected above zero: SimKD has no other loss")
        self.weight = weight
        final_linear(student, example).requires_grad_(False)
        classifier = copy.deepcopy(final_linear(teacher, example))
        projector = Projector(ours.features[0], theirs.features[0], reduction)
        self.student = ReusedClassifier(student, ours, projector, classifier)

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the loss ``distill/feature``; the logits are those of the network that is deployed."""
        self._adapt(inputs, **context)
        projected = self.student.projected(inputs, **context)
        (feature,), target = self.teacher_features(inputs, **context)
        feature = as_maps(feature, self.teacher_blocks.features[0].layout)
        logits = self.student.classify(projected)
        check_logits(logits, targets, target)
        feature = F.adaptive_avg_pool2d(feature, (projected.shape[2], projected.shape[3]))
        return Losses.of({"distill/feature": self.weight * feature_regression(projected, feature)}, logits)

    def deployable(self) -> "ReusedClassifier":
        """The network to deploy: student body, projector, teacher's classifier; images → logits ``(B, K)``."""
        return self.student


class CATKD(BlockwiseDistiller):
    """Class attention transfer: class activation maps of student and teacher, pooled, normalised, compared.

    Source: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv 2304.12777,
    sections 3.1 and 3.3: with ``A_k = Σ_c w_kc · F_c`` from the last map F before global average pooling and the
    weights w of the linear classifier::

        L = α · CE(Y^S, y) + β · mean_bk mean_hw (φ(A_k^S) / ‖φ(A_k^S)‖ - φ(A_k^T) / ‖φ(A_k^T)‖)²

    where φ averages a map down to ``resolution`` × ``resolution``. Nothing is added to the networks. The classifier's
    bias is left out of the maps, as in the authors' code, which has none; here both networks keep theirs. The authors'
    default is β = 400. Their files for single pairs go other ways: β = 15 *without* normalisation for ResNet32x4 →
    ResNet8x4, 0.7 without it for ResNet56 → ResNet20, 15 with it for VGG13 → MobileNetV2.

    Args:
        teacher: trained; ends in global average pooling and one linear layer; frozen from here on.
        student: ends in global average pooling and one linear layer; trained in place.
        example: a batch of inputs ``(B, ...)``; when left out, a size that both networks accept is tried out.
        alpha: weight α of the labels.
        beta: weight β of the maps.
        resolution: height and width to which the maps are averaged.
        normalize: divide each map by its norm, as the paper does.

    Raises:
        ValueError: a network does not end in global average pooling and one linear layer, the networks tell different
            numbers of classes apart, or ``resolution`` is not above zero.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 400.0,
        resolution: int = 2,
        normalize: bool = True,
    ) -> None:
        example = example_for(teacher, student) if example is None else example
        theirs, ours = cut_before_pooling(teacher, example, frozen=True), cut_before_pooling(student, example)
        super().__init__(teacher, student, example, teacher_blocks=theirs, student_blocks=ours)
        if resolution < 1:
            raise ValueError(f"resolution is {resolution}, expected at least 1 (the authors take 2)")
        self.alpha, self.beta, self.resolution, self.normalize = alpha, beta, resolution, normalize
        self._linears = final_linear(student, example), final_linear(teacher, example)
        classes = [linear.out_features for linear in self._linears]
        if classes[0] != classes[1]:
            raise ValueError(
                f"the student tells {classes[0]} classes apart and the teacher {classes[1]}: give one a new head"
            )

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student`` and ``distill/cam``."""
        (feature,), logits = self.student_features(inputs, **context)
        check_logits(logits, targets)
        terms = {}
        if self.alpha:
            terms["task/student"] = self.alpha * cross_entropy(logits, targets)
        if self.beta:
            (target,), _ = self.teacher_features(inputs, **context)
            ours, theirs = (
                class_activation_maps(as_maps(value, blocks.features[0].layout), linear.weight, self.resolution)
                for value, blocks, linear in zip((feature, target), self._blocks[::-1], self._linears, strict=True)
            )
            terms["distill/cam"] = self.beta * class_attention(ours, theirs, self.normalize)
        return Losses.of(terms, logits)


def feature_regression(learner: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Mean squared error over all elements (SimKD, equation 3); float32 for half-precision input."""
    return F.mse_loss(widen(learner), widen(target))


def class_activation_maps(
    feature: Float[Tensor, "B C H W"], weight: Float[Tensor, "K C"], resolution: int
) -> Float[Tensor, "B K h w"]:
    """``φ(A_k)`` with ``A_k = Σ_c w_kc · F_c`` (CAT-KD, section 3.1); float32 for half-precision input.

    Args:
        feature: the last map before global average pooling, ``(B, C, H, W)``.
        weight: of the linear classifier, ``(K, C)``.
        resolution: height and width of the result.
    """
    # Averaged first: both steps are linear, and K maps are more than C maps are seldom.
    pooled = F.adaptive_avg_pool2d(widen(feature), resolution)
    return torch.einsum("bchw,kc->bkhw", pooled, widen(weight))


def class_attention(
    learner: Float[Tensor, "B K h w"], target: Float[Tensor, "B K h w"], normalize: bool = True
) -> Float[Tensor, ""]:
    """The CAT loss: mean squared error between class activation maps, each divided by its L2 norm (CAT-KD, 3.3).

    Normalised, it does not change when a map is scaled; the authors' mean over the places is kept, for which their
    weights are meant.
    """
    if normalize:
        learner, target = (F.normalize(maps.flatten(2), dim=2, eps=SMALLEST_NORM) for maps in (learner, target))
    return F.mse_loss(learner, target)


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
        maps = as_maps(blocks.blocks[0](inputs, **context), blocks.features[0].layout)
        projected: Tensor = self.projector(maps)
        return projected

    def classify(self, projected: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Projected map → logits ``(B, K)`` of the teacher's classifier."""
        logits: Tensor = self.classifier(projected.mean(dim=(2, 3)))
        return logits

    def forward(self, inputs: Tensor, **context: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
        """Inputs → logits ``(B, K)``."""
        return self.classify(self.projected(inputs, **context))


def as_maps(feature: Float[Tensor, "B ..."], layout: Layout) -> Float[Tensor, "B C H W"]:
    """A map with its channels first.

    Raises:
        ValueError: the feature is no map.
    """
    if layout not in ("CHW", "HWC"):
        raise ValueError(f"a feature laid out as {layout} is no map: this method needs networks with maps (B, C, H, W)")
    return feature if layout == "CHW" else feature.permute(0, 3, 1, 2)


def final_linear(network: nn.Module, example: Tensor) -> nn.Linear:
    """The linear layer whose output is the network's logits, found by running the example through.

    Raises:
        ValueError: there is none.
    """
    outputs: list[tuple[nn.Linear, Tensor]] = []

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        outputs.append((module, output))

    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    handles = [linear.register_forward_hook(note) for linear in linears]
    try:
        with torch.no_grad(), undisturbed(network, training=False):
            logits = network(random_like(example))
    finally:
        for handle in handles:
            handle.remove()
    for linear, output in reversed(outputs):
        if output.shape == logits.shape and torch.equal(output, logits):
            return linear
    raise ValueError(
        f"{type(network).__name__} gives logits that are not the output of one linear layer (it has {len(linears)} "
        "linear layers): this method needs a network that ends in one"
    )


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs that a module gets while the context is open, in order."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


def cut_before_pooling(network: nn.Module, example: Tensor, *, frozen: bool = False) -> Blocks:
    """Cut a network once: everything up to its last map, and global average pooling with one linear layer.

    The map is told by its value: its mean over the places is what the final linear layer gets.

    Args:
        network: maps one tensor to logits ``(B, K)``.
        example: a batch of inputs ``(B, ...)``.
        frozen: the network stays in evaluation mode, as a teacher does.

    Raises:
        ValueError: the network does not end so, or cannot be cut there.
    """
    linear, survey = final_linear(network, example), Survey(network, example)
    points = [point for point in survey.points[-LAST_POINTS:] if _may_be_pooled(point, linear)]
    found = _pooled_point(network, example, linear, survey, points) if points else None
    if found is None:
        tried = ", ".join(f"{point.name} ({point.feature})" for point in points) or "none has as many channels"
        raise ValueError(
            f"{type(network).__name__} does not end in global average pooling and one linear layer: no map averaged "
            f"over its places is what the layer with {linear.in_features} inputs gets (looked at: {tried}); use a "
            "method that does not need this form"
        )
    return survey.cut([found], frozen=frozen)


def _pooled_point(
    network: nn.Module, example: Tensor, linear: nn.Linear, survey: Survey, points: list[CutPoint]
) -> CutPoint | None:
    blocks = survey.cut(points, frozen=True)
    with torch.no_grad(), undisturbed(network, training=False), inputs_of(linear) as seen:
        values, _ = blocks.run(random_like(example))
    for point, value in reversed(list(zip(points, values, strict=True))):
        average = as_maps(value, point.feature.layout).mean(dim=(2, 3))
        if seen[-1].shape == average.shape and torch.allclose(average, seen[-1], rtol=1e-4, atol=1e-6):
            return point
    return None


def _may_be_pooled(point: CutPoint, linear: nn.Linear) -> bool:
    return point.feature.layout in ("CHW", "HWC") and point.feature.channels == linear.in_features


def random_like(example: Tensor) -> Tensor:
    """Inputs like the example, but not blank as an example may be: on those all places look alike."""
    if not example.is_floating_point():
        return example
    return torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example)


def _activated(convolution: nn.Conv2d) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
