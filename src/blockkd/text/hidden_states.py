"""Methods that compare hidden states of teacher and student block by block, without their padding: PKD."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from blockkd.baselines.block_features import Stages, chosen_stages
from blockkd.baselines.mixture import Mixture
from blockkd.baselines.numerics import unit, widen
from blockkd.blockwise import BlockwiseDistiller
from blockkd.calling import Inputs
from blockkd.distances import LogitDistance
from blockkd.distiller import Losses
from blockkd.features import Feature


class HiddenStateDistiller(BlockwiseDistiller):
    """``L = α · CE(Y^S, y) + β · Σ_i L_method(F_i^S, F_i^T) + w · d_L(Y^S, Y^T)``, over real tokens only.

    Args:
        teacher, student, example: see ``BlockwiseDistiller``; the example is a mapping of named tensors.
        beta: weight β of the method's own loss.
        stages: after which blocks: ``"all"``, ``"middle"``, ``"last"``, or a list.
        alpha: weight α of the labels.
        logit_weight: weight w of the teacher's logits.
        distance: the logit distance ``d_L``; ``KL(temperature=4)`` when left out.
        shared: the other parameters of ``BlockwiseDistiller``, which say how to cut.

    Raises:
        ValueError: weights or stages that do not fit, or networks that do not give sequences of one length.
    """

    masks_padding = True

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Inputs | None = None,
        *,
        beta: float,
        stages: Stages,
        alpha: float = 1.0,
        logit_weight: float = 0.0,
        distance: LogitDistance | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, **shared)
        self.mixture = Mixture(alpha, beta, logit_weight, distance)
        self.stages = chosen_stages(stages, len(self.student_blocks))
        for i in self.stages:
            ours, theirs = self.student_blocks.features[i - 1], self.teacher_blocks.features[i - 1]
            if ours.layout != "LD" or ours.grid != theirs.grid:
                raise ValueError(
                    f"{type(self).__name__} compares token by token, but after block {i} the student has {ours} and "
                    f"the teacher {theirs}: both must read the same tokens"
                )

    @abstractmethod
    def block_loss(
        self, i: int, student: Float[Tensor, "B L D"], teacher: Float[Tensor, "B L E"], real: Bool[Tensor, "B L"]
    ) -> Float[Tensor, ""]:
        """Hidden states after block i, and which tokens are no padding → the method's loss, not yet weighed by β."""

    def forward(self, inputs: Inputs, targets: Real[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``feature/block_i`` and ``distill/student``."""
        ours, logits = self.student_features(inputs, **context)
        theirs, target = self.teacher_features(inputs, **context)
        real = real_tokens(inputs, ours[0])
        own = {f"feature/block_{i}": self.block_loss(i, ours[i - 1], theirs[i - 1], real) for i in self.stages}
        return self.mixture.losses(logits, targets, target, own if self.mixture.beta else {})


class PKD(HiddenStateDistiller):
    """Patient knowledge distillation: the telling token's hidden states, normalised, are to be the teacher's.

    Source: Sun et al., "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019, arXiv 1908.09355,
    equation 8: ``L_PT = Σ_j ‖ h_j^S / ‖h_j^S‖₂ - h_j^T / ‖h_j^T‖₂ ‖²`` of the first token, mean over the batch, summed
    over all layers of the student but the last. The paper weighs ``(1 - α) · CE + α · KD + β · L_PT`` and searches
    α in {0.2, 0.5, 0.7}, β in {10, 100, 500, 1000}; there the square is divided by the width as well.

    Beside the student this trains nothing where the widths are equal, as in the paper, and else a linear map for each.

    Args:
        teacher, student, example: see ``HiddenStateDistiller``.
        beta: weight β.
        stages: after which blocks; all but the last when left out.
        alpha: weight of the labels.
        logit_weight: weight of the teacher's logits.
        token: which token is compared: the ``first``, which encoders classify by, or the ``last`` that is no padding,
            for decoders.
        shared: the other parameters of ``HiddenStateDistiller``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Inputs | None = None,
        *,
        beta: float = 1.0,
        stages: Stages | None = None,
        alpha: float = 0.5,
        logit_weight: float = 0.5,
        token: Literal["first", "last"] = "first",
        **shared: Any,
    ) -> None:
        weights = {"beta": beta, "alpha": alpha, "logit_weight": logit_weight}
        super().__init__(teacher, student, example, stages="all", **weights, **shared)  # type: ignore[arg-type]
        n = len(self.student_blocks)
        self.stages = chosen_stages(list(range(1, n)) or [n] if stages is None else stages, n)
        if token not in ("first", "last"):
            raise ValueError(f"token is {token!r}, expected 'first' or 'last'")
        self.token = token
        self.connect(self.stages, _linear_unless_equal)

    def block_loss(
        self, i: int, student: Float[Tensor, "B L D"], teacher: Float[Tensor, "B L E"], real: Bool[Tensor, "B L"]
    ) -> Float[Tensor, ""]:
        """The telling token after block i."""
        ours, theirs = (telling_token(states, real, self.token) for states in (student, teacher))
        return patient_loss(self.connectors[str(i)](ours), theirs)


def patient_loss(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """``mean_b ‖ h^S / ‖h^S‖₂ - h^T / ‖h^T‖₂ ‖²`` (arXiv 1908.09355, equation 8, for one layer).

    Args:
        student: hidden states ``(B, D)``.
        teacher: hidden states ``(B, D)``.

    Returns:
        A scalar between 0 and 4; scaling a hidden state changes nothing.
    """
    ours, theirs = (unit(widen(states)) for states in (student, teacher))
    return (ours - theirs).square().sum(dim=1).mean()


def telling_token(
    states: Float[Tensor, "B L D"], real: Bool[Tensor, "B L"], token: Literal["first", "last"]
) -> Float[Tensor, "B D"]:
    """The hidden state ``(B, D)`` of the first, or of the last, token that is no padding."""
    places = torch.arange(real.shape[1], device=real.device)
    ahead = places + 1 if token == "last" else len(places) - places
    chosen = (real * ahead).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), chosen]


def real_tokens(inputs: Inputs, states: Float[Tensor, "B L D"]) -> Bool[Tensor, "B L"]:
    """Which tokens are no padding, by the batch's ``attention_mask``; all where there is none."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask.bool()


def linear(student: Feature, teacher: Feature) -> nn.Module:
    """A matrix from the student's width to the teacher's."""
    return nn.Linear(student.channels, teacher.channels, bias=False)


def _linear_unless_equal(student: Feature, teacher: Feature) -> nn.Module:
    return nn.Identity() if student.channels == teacher.channels else linear(student, teacher)
