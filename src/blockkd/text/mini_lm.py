"""MiniLM: how the tokens of a sentence relate to each other in one layer's attention, in any number of heads."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from blockkd.baselines.mixture import Mixture
from blockkd.baselines.numerics import products, widen
from blockkd.blockwise import BlockwiseDistiller
from blockkd.calling import Inputs
from blockkd.distances import LogitDistance
from blockkd.distiller import Losses
from blockkd.text.attention import Attention, Inside, projections_of, run_inside, stack_of
from blockkd.text.hidden_states import real_tokens
from blockkd.tracing import undisturbed

Relation = Literal["QQ", "KK", "VV", "QK"]


class MiniLM(BlockwiseDistiller):
    """``L = α · CE(Y^S, y) + β · Σ_r KL(R_r^T ‖ R_r^S) + w · d_L(Y^S, Y^T)``, of one layer each.

    Sources: Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
    Transformers", Findings of ACL 2021, arXiv 2012.15828: ``R = softmax(A Aᵀ / √d_r)`` with A the queries, the keys, or
    the values, all heads laid together and split anew into so many relation heads; so student and teacher may differ in
    heads and width, and nothing is trained beside the student. Wang et al., "MiniLM", NeurIPS 2020, arXiv 2002.10957,
    is ``relations=["QK", "VV"]`` with as many relation heads as attention heads: "QK" are the attention distributions.

    Both papers distil before fine-tuning, by this loss alone. Here it stands beside the labels, which a classifier's
    head needs. There the student's last layer learns from the teacher's last, or, of large teachers, from an upper
    middle one (``teacher_layer``).

    Queries and keys are those that are multiplied, rotary positions and norms included. Networks that do not show
    them are refused: those loaded with ``attn_implementation="eager"``, and MPNet and DeBERTa, which add positions to
    their scores by code of their own.

    Args:
        teacher, student, example: see ``BlockwiseDistiller``; the example is a mapping of named tensors.
        beta: weight β of the relations.
        relations: which, "QQ", "KK", "VV" or "QK".
        relation_heads: into how many heads; it must divide both widths. As many as the teacher has attention heads when
            left out; the second paper takes 48 for networks of 12 heads, and reports that more are better.
        teacher_layer: whose relations are learned, by number from 1; the last when left out.
        alpha: weight α of the labels.
        logit_weight: weight w of the teacher's logits.
        distance: the logit distance ``d_L``; ``KL(temperature=4)`` when left out.
        shared: the other parameters of ``BlockwiseDistiller``, which say how to cut.

    Raises:
        ValueError: weights, relations or heads that do not fit, or attention that cannot be seen.
    """

    masks_padding = True

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Inputs | None = None,
        *,
        beta: float = 1.0,
        relations: Sequence[Relation] = ("QQ", "KK", "VV"),
        relation_heads: int | None = None,
        teacher_layer: int | None = None,
        alpha: float = 1.0,
        logit_weight: float = 0.0,
        distance: LogitDistance | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, **shared)
        self.mixture = Mixture(alpha, beta, logit_weight, distance)
        self.leaves_unused = not (alpha or logit_weight)  # then nothing reaches the head
        self.relations = _checked_relations(relations)
        stacks = [stack_of(blocks, "MiniLM") for blocks in (self.student_blocks, self.teacher_blocks)]
        last = [blocks.ends[-1] for blocks in stacks]
        if teacher_layer is not None and not 1 <= teacher_layer <= last[1]:
            raise ValueError(f"teacher_layer is {teacher_layer}, expected 1 … {last[1]}, the layers of the teacher")
        self.layers = last[0], last[1] if teacher_layer is None else teacher_layer
        assert example is not None  # networks with named tensors have one
        with torch.no_grad(), undisturbed(student, training=False), undisturbed(teacher, training=False):
            ours, theirs = (
                inside.attention[n] for inside, n in zip(self._inside(example, {}), self.layers, strict=True)
            )
        self.relation_heads = theirs.heads if relation_heads is None else relation_heads
        self._check_heads(ours, theirs)

    def forward(self, inputs: Inputs, targets: Real[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``relation/QQ`` and so on, and ``distill/student``."""
        ours, theirs = self._inside(inputs, context)
        real = real_tokens(inputs, ours.entering)
        own = {}
        for name in self.relations if self.mixture.beta else ():
            logs = [
                self._relation(name, inside.attention[n], real)
                for inside, n in zip((ours, theirs), self.layers, strict=True)
            ]
            own[f"relation/{name}"] = relation_loss(logs[0], logs[1], real)
        return self.mixture.losses(ours.logits, targets, theirs.logits, own)

    def _relation(self, name: Relation, attention: Attention, real: Bool[Tensor, "B L"]) -> Float[Tensor, "B R L L"]:
        projections = attention.projections
        assert projections is not None  # checked at construction
        by_letter = {"Q": projections.queries, "K": projections.keys, "V": projections.values}
        left, right = (in_heads(by_letter[letter], self.relation_heads, real) for letter in name)
        # Who attends to whom belongs to attention alone; vectors of one kind are related without it.
        seen = attention.attended() if name == "QK" else None
        return log_relation(left, right, real, seen)

    def _inside(self, inputs: Inputs, context: dict[str, Any]) -> tuple[Inside, Inside]:
        """Both networks' forward passes, the teacher's without gradient."""
        self._keep_teacher_frozen()
        self._adapt(inputs, **context)
        ours, theirs = (stack_of(blocks, "MiniLM") for blocks in (self.student_blocks, self.teacher_blocks))
        with torch.no_grad():
            target = run_inside(theirs, self.layers[1:], inputs, context)
        return run_inside(ours, self.layers[:1], inputs, context), target

    def _check_heads(self, ours: Attention, theirs: Attention) -> None:
        assert self.teacher is not None
        tokens = [
            projections_of(a, n, "MiniLM").queries.shape[2] for a, n in ((ours, self.student), (theirs, self.teacher))
        ]
        if tokens[0] != tokens[1]:
            raise ValueError(
                f"the student relates {tokens[0]} tokens and the teacher {tokens[1]}: both must read the same tokens"
            )
        for attention, network, who in ((ours, self.student, "student"), (theirs, self.teacher, "teacher")):
            shown = projections_of(attention, network, "MiniLM")
            for vectors in (shown.queries, shown.values):
                width = vectors.shape[1] * vectors.shape[3]
                if self.relation_heads < 1 or width % self.relation_heads:
                    raise ValueError(
                        f"relation_heads is {self.relation_heads}, which cannot share the {width} numbers of the "
                        f"{who}'s queries, keys and values evenly: give a divisor of both networks' widths"
                    )


def relation_loss(
    student: Float[Tensor, "B R L L"], teacher: Float[Tensor, "B R L L"], real: Bool[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """``1 / (R · |x|) Σ_r Σ_t KL(R^T_{r,t} ‖ R^S_{r,t})`` (arXiv 2012.15828, equation of L_ij; 2002.10957, L_AT, L_VR).

    Args:
        student: logarithms of relations, as ``log_relation`` gives them.
        teacher: the same of the teacher.
        real: which tokens are no padding, ``(B, L)``; |x| are as many as there are of an example.

    Returns:
        The mean over the batch, a scalar.
    """
    divergence = (teacher.exp() * (teacher - student)).sum(dim=3).mean(dim=1)
    return (torch.where(real, divergence, 0.0).sum(dim=1) / real.sum(dim=1)).mean()


def log_relation(
    left: Float[Tensor, "B R L d"],
    right: Float[Tensor, "B R L d"],
    real: Bool[Tensor, "B L"],
    seen: Bool[Tensor, "#B #R #L #L"] | None = None,
) -> Float[Tensor, "B R L L"]:
    """``log softmax(left rightᵀ / √d)`` over the real tokens.

    Args:
        left: vectors in relation heads.
        right: vectors in relation heads.
        real: which tokens are no padding, ``(B, L)``.
        seen: which tokens (last dimension) each token may relate to; all when left out.
    """
    scores = products(left, right) / left.shape[-1] ** 0.5
    allowed = real[:, None, None, :] if seen is None else real[:, None, None, :] & seen
    # A number, no infinity: of a row without any allowed one, which is padding, nothing may become NaN.
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).log_softmax(dim=3)


def in_heads(vectors: Float[Tensor, "B H L d"], heads: int, real: Bool[Tensor, "B L"]) -> Float[Tensor, "B R L e"]:
    """The vectors of all heads laid together and split into so many; 0 on padding."""
    batch, _, length, _ = vectors.shape
    rows = vectors.transpose(1, 2).reshape(batch, length, heads, -1).transpose(1, 2)
    return torch.where(real[:, None, :, None], widen(rows), 0.0)


def _checked_relations(relations: Sequence[Relation]) -> tuple[Relation, ...]:
    known = get_args(Relation)
    chosen = tuple(relations)
    if isinstance(relations, str) or not chosen or not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
        raise ValueError(f"relations is {relations!r}, expected a list of different ones of {', '.join(known)}")
    return chosen
