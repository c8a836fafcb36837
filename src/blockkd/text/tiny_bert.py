"""TinyBERT: embeddings, attention scores, hidden states and logits, layer by layer, without padding."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from blockkd.baselines.block_features import Stages
from blockkd.baselines.numerics import widen
from blockkd.calling import Inputs
from blockkd.distances import KL, LogitDistance
from blockkd.distiller import Losses
from blockkd.stack_blocks import StackBlocks
from blockkd.text.attention import Attention, Inside, run_inside, stack_of
from blockkd.text.hidden_states import HiddenStateDistiller, linear, real_tokens
from blockkd.tracing import undisturbed


class TinyBERT(HiddenStateDistiller):
    """``L = β · (λ_e · L_embd + Σ_i (L_hidn + λ_a · L_attn)) + w · d_L(Y^S, Y^T) + α · CE(Y^S, y)``.

    Source: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020,
    arXiv 1909.10351, equations 7 to 11: ``L_attn = 1/h Σ MSE(A_i^S, A_i^T)`` of the scores before the softmax,
    ``L_hidn = MSE(H^S W_h, H^T)``, ``L_embd = MSE(E^S W_e, E^T)``, and the cross-entropy of softened logits at
    temperature 1, of which the divergence here has the gradient. All weights are 1 there. The map of layers is uniform,
    as there, or any (``teacher_blocks=[3, 6, 12]``).

    What differs: there one matrix serves all layers, here each has its own; there the layers are learned in epochs
    before the logits, here at once (train twice, first with ``logit_weight=0``, to do as there); padding counts there
    as scores of 0, here not at all. The distillation before fine-tuning and the augmentation of the data are left out.

    Attention is compared head with head, so student and teacher need equally many; ``attention=0`` leaves it out, and
    ``blockkd.text.mini_lm.MiniLM`` does without. Beside the student this trains the matrices.

    Args:
        teacher, student, example: see ``HiddenStateDistiller``.
        beta: weight β of all that is compared inside.
        attention: weight λ_a of the attention scores.
        embeddings: weight λ_e of what enters the first layer.
        stages: after which blocks hidden states are compared, and the attention of the last layer of each.
        alpha: weight of the labels; the paper has none.
        logit_weight: weight of the teacher's logits.
        distance: the logit distance ``d_L``; ``KL(temperature=1)`` when left out.
        shared: the other parameters of ``HiddenStateDistiller``.

    Raises:
        ValueError: weights or stages that do not fit, networks that do not read the same tokens, attention that cannot
            be seen, or different numbers of heads.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Inputs | None = None,
        *,
        beta: float = 1.0,
        attention: float = 1.0,
        embeddings: float = 1.0,
        stages: Stages = "all",
        alpha: float = 0.0,
        logit_weight: float = 1.0,
        distance: LogitDistance | None = None,
        **shared: Any,
    ) -> None:
        if distance is None and logit_weight:
            distance = KL(temperature=1.0)
        weights: dict[str, Any] = {"beta": beta, "alpha": alpha, "logit_weight": logit_weight, "distance": distance}
        super().__init__(teacher, student, example, stages=stages, **weights, **shared)
        if min(attention, embeddings) < 0:
            raise ValueError(f"attention is {attention} and embeddings {embeddings}, expected weights of zero or more")
        self.attention, self.embeddings = attention, embeddings
        self.leaves_unused = not (alpha or logit_weight)  # then nothing reaches the head
        self.connect(self.stages, linear)
        if attention or embeddings:
            self._look_inside(example)

    def block_loss(
        self, i: int, student: Float[Tensor, "B L D"], teacher: Float[Tensor, "B L E"], real: Bool[Tensor, "B L"]
    ) -> Float[Tensor, ""]:
        """The hidden states of all real tokens after block i."""
        return hidden_state_loss(self.connectors[str(i)](student), teacher, real)

    def forward(self, inputs: Inputs, targets: Real[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → ``feature/embeddings``, ``feature/block_i``, ``attention/block_i``, and those on logits."""
        if not (self.attention or self.embeddings) or not self.mixture.beta:
            return super().forward(inputs, targets, **context)
        ours, theirs = self._inside(inputs, context)
        real = real_tokens(inputs, ours.entering)
        own = {}
        if self.embeddings:
            mapped = self.embedding_map(ours.entering)
            own["feature/embeddings"] = self.embeddings * hidden_state_loss(mapped, theirs.entering, real)
        for i in self.stages:
            own[f"feature/block_{i}"] = self.block_loss(i, ours.states[i - 1], theirs.states[i - 1], real)
            if self.attention:
                score_loss = attention_score_loss(*self._attention(i, ours, theirs), real)
                own[f"attention/block_{i}"] = self.attention * score_loss
        return self.mixture.losses(ours.logits, targets, theirs.logits, own)

    def _inside(self, inputs: Inputs, context: dict[str, Any]) -> tuple[Inside, Inside]:
        """Both networks' forward passes, the teacher's without gradient."""
        self._keep_teacher_frozen()
        self._adapt(inputs, **context)
        ours, theirs = self._stacks()
        layers = [[blocks.ends[i - 1] for i in self.stages] if self.attention else [] for blocks in (ours, theirs)]
        with torch.no_grad():
            target = run_inside(theirs, layers[1], inputs, context)
        return run_inside(ours, layers[0], inputs, context), target

    def _look_inside(self, example: Inputs | None) -> None:
        """Make the map of the embeddings, and see whether attention can be compared."""
        self._stacks()  # which says what is wrong with an example that is left out
        assert example is not None
        assert self.teacher is not None
        with torch.no_grad(), undisturbed(self.student, training=False), undisturbed(self.teacher, training=False):
            ours, theirs = self._inside(example, {})
        if self.embeddings:
            widths = ours.entering.shape[2], theirs.entering.shape[2]
            self.embedding_map = nn.Linear(*widths, bias=False).to(ours.entering)
        for i in self.stages if self.attention else ():
            heads = [attention.heads for attention in self._attention(i, ours, theirs)]
            if heads[0] != heads[1]:
                raise ValueError(
                    f"TinyBERT compares attention head with head, but in block {i} the student has {heads[0]} heads "
                    f"and the teacher {heads[1]}: give the student num_attention_heads={heads[1]}, leave attention out "
                    "(attention=0), or take MiniLM, which regroups them"
                )

    def _attention(self, i: int, ours: Inside, theirs: Inside) -> tuple[Attention, Attention]:
        """The attention of the last layers of both blocks i."""
        last = [blocks.ends[i - 1] for blocks in self._stacks()]
        return ours.attention[last[0]], theirs.attention[last[1]]

    def _stacks(self) -> tuple[StackBlocks, StackBlocks]:
        return stack_of(self.student_blocks, "TinyBERT"), stack_of(self.teacher_blocks, "TinyBERT")


def hidden_state_loss(
    student: Float[Tensor, "B L D"], teacher: Float[Tensor, "B L D"], real: Bool[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """Mean squared error over real tokens and channels of each example (arXiv 1909.10351, equations 8 and 9).

    Args:
        student: ``(B, L, D)``.
        teacher: ``(B, L, D)``.
        real: which tokens are no padding, ``(B, L)``.

    Returns:
        The mean over the batch, a scalar; a short example counts as much as a long one.
    """
    # Left out before it is squared: whatever stands on padding has then no gradient, not even a NaN.
    differences = torch.where(real.unsqueeze(2), widen(student) - widen(teacher), 0.0)
    return (differences.square().mean(dim=2).sum(dim=1) / real.sum(dim=1)).mean()


def attention_score_loss(student: Attention, teacher: Attention, real: Bool[Tensor, "B L"]) -> Float[Tensor, ""]:
    """Mean squared error of the scores before the softmax (arXiv 1909.10351, equation 7).

    Compared are pairs of real tokens of which the first attends to the second in both networks: all of them in encoders
    that attend to the whole sequence, fewer in decoders, or where a layer sees a window.

    Args:
        student: of one layer, H heads.
        teacher: of one layer, H heads.
        real: which tokens are no padding, ``(B, L)``.

    Returns:
        The mean over heads and pairs of each example, and over the batch, a scalar.
    """
    counted = student.attended() & teacher.attended() & real[:, None, :, None] & real[:, None, None, :]
    squares = torch.where(counted, student.scores() - teacher.scores(), 0.0).square()
    pairs = counted.expand_as(squares).sum(dim=(1, 2, 3))
    return (squares.sum(dim=(1, 2, 3)) / pairs).mean()
