"""CAT-KD: where in the image each network sees each class."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.block_features import FeatureDistiller
from blockkd.baselines.heads import Head, cut_before_pooling
from blockkd.baselines.numerics import products, widen
from blockkd.connectors import to_maps
from blockkd.distances import LogitDistance
from blockkd.examples import example_for

SMALLEST_NORM = 1e-8  # up to which a class activation map counts as empty


class CATKD(FeatureDistiller):
    """Class attention transfer: class activation maps of student and teacher, pooled, normalised, compared.

    Source: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv 2304.12777, and the
    authors' public code. With ``A_k = Σ_c w_kc · F_c`` from the last map F before global average pooling and the
    weights w of the linear classifier::

        L = α · CE(Y^S, y) + β · mean_bk mean_hw (φ(A_k^S) / ‖φ(A_k^S)‖ - φ(A_k^T) / ‖φ(A_k^T)‖)²

    where φ averages a map down to ``resolution`` × ``resolution``. Nothing is added to the networks. The classifier's
    bias is left out of the maps, as in the authors' code, which has none; here both networks keep theirs.

    The authors' weights, which this mean belongs to, hang on the pair (CIFAR-100). Normalised, β at resolution: 600 at
    4 for ResNet32x4 → ShuffleNetV1 and V2, 80 at 4 for WRN-40-2 → ShuffleNetV1, 40 at 2 for ResNet50 → MobileNetV2,
    15 at 2 for VGG13 → MobileNetV2. *Not* normalised, resolution 2: 15 for ResNet32x4 → 8x4, 12 for WRN-40-2 → 16-2,
    4.5 for VGG13 → VGG8, 1.8 for ResNet110 → 32, 1.5 for WRN-40-2 → 40-1, 0.7 for ResNet56 → 20.

    Args:
        teacher, student, example: see ``FeatureDistiller``; both networks end in global average pooling and one linear
            layer.
        beta: weight β of the maps; 400 where the authors' code is not told otherwise.
        resolution: height and width to which the maps are averaged.
        normalize: divide each map by its norm, as the paper does.
        alpha, logit_weight, distance: see ``FeatureDistiller``.

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
        beta: float = 400.0,
        resolution: int = 2,
        normalize: bool = True,
        alpha: float = 1.0,
        logit_weight: float = 0.0,
        distance: LogitDistance | None = None,
    ) -> None:
        if resolution < 1:
            raise ValueError(f"resolution is {resolution}, expected at least 1 (the authors take 2 or 4)")
        example = example_for(teacher, student) if example is None else example
        heads = Head(teacher, example=example), Head(student, example=example)
        theirs = cut_before_pooling(teacher, heads[0], example, frozen=True)
        ours = cut_before_pooling(student, heads[1], example)
        super().__init__(
            teacher,
            student,
            example,
            beta=beta,
            alpha=alpha,
            logit_weight=logit_weight,
            distance=distance,
            teacher_blocks=theirs,
            student_blocks=ours,
        )
        self.resolution, self.normalize = resolution, normalize
        self.heads = heads
        classes = [linear.out_features for linear in self._classifiers()]
        if classes[0] != classes[1]:
            raise ValueError(
                f"the student tells {classes[1]} classes apart and the teacher {classes[0]}: give one a new head"
            )

    def feature_losses(
        self, student: Sequence[Float[Tensor, "B ..."]], teacher: Sequence[Float[Tensor, "B ..."]]
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss ``feature/cam``."""
        theirs, ours = (
            class_activation_maps(to_maps(value, blocks.features[0]), linear.weight, self.resolution)
            for value, blocks, linear in zip((teacher[0], student[0]), self._blocks, self._classifiers(), strict=True)
        )
        return {"feature/cam": class_attention(ours, theirs, self.normalize)}

    def _classifiers(self) -> tuple[nn.Linear, nn.Linear]:
        """The last layers of teacher and student."""
        teacher_head, student_head = self.heads
        assert self.teacher is not None
        return teacher_head.linear(self.teacher), student_head.linear(self.student)


def class_activation_maps(
    feature: Float[Tensor, "B C H W"], weight: Float[Tensor, "K C"], resolution: int
) -> Float[Tensor, "B K h w"]:
    """``φ(A_k)`` with ``A_k = Σ_c w_kc · F_c`` (see ``CATKD``); float32 for half-precision input.

    Args:
        feature: the last map before global average pooling, ``(B, C, H, W)``.
        weight: of the linear classifier, ``(K, C)``.
        resolution: height and width of the result.
    """
    # Averaged first: both steps are linear, and K maps are more than C maps are seldom.
    pooled = F.adaptive_avg_pool2d(widen(feature), resolution)
    weights = widen(weight).expand(len(pooled), -1, -1)
    return products(weights, pooled.flatten(2).mT).unflatten(2, pooled.shape[2:])


def class_attention(
    learner: Float[Tensor, "B K h w"], target: Float[Tensor, "B K h w"], normalize: bool = True
) -> Float[Tensor, ""]:
    """The CAT loss: mean squared error between class activation maps, each divided by its L2 norm (see ``CATKD``).

    Normalised, it does not change when a map is scaled; the authors' mean over the places is kept, for which their
    weights are meant.
    """
    if normalize:
        learner, target = (F.normalize(maps.flatten(2), dim=2, eps=SMALLEST_NORM) for maps in (learner, target))
    return F.mse_loss(learner, target)
