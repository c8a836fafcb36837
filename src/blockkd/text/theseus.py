"""BERT-of-Theseus: the teacher's blocks are replaced by the student's at random, ever more of them."""

from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from blockkd.blockwise import BlockwiseDistiller
from blockkd.calling import Inputs, logits_of
from blockkd.distiller import Losses, check_logits
from blockkd.objectives import task_loss


class Theseus(BlockwiseDistiller):
    """Module replacing: each block of the data flow is the student's with probability p, else the teacher's.

    Source: Xu et al., "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing", EMNLP 2020,
    arXiv 2002.02925, equations 2 to 7. ``y_{i+1} = r_i · S_i(y_i) + (1 - r_i) · T_i(y_i)`` with ``r_i ~ Bernoulli(p)``
    drawn for each block and step; trained by the labels alone. The rate rises linearly, ``p = min(1, b + k · t)``. As
    in the paper embeddings and head are the teacher's, frozen, as long as p is below 1; then the student runs and
    learns by itself, its own embeddings and head included.

    A mixed flow is a stepping stone's relative: there all stones are run at once and change from student to teacher
    once only. Nothing but the student is trained.

    Args:
        teacher: trained; frozen from here on.
        student: of the same width; trained in place. Best made of the teacher's layers (``student_of``).
        example: a batch by which both networks are cut.
        start: b, the rate at the start.
        steps: the number of steps after which p is 1, counted while training.
        shared: the other parameters of ``BlockwiseDistiller``, which say how to cut.

    Raises:
        ValueError: the widths differ, or a rate or number of steps is out of range.
    """

    masks_padding = True

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Inputs | None = None,
        *,
        start: float = 0.5,
        steps: int = 1000,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, **shared)
        if not 0 < start <= 1 or steps < 1:
            raise ValueError(f"start is {start} and steps {steps}, expected a rate 0 < b ≤ 1 and at least one step")
        for i, pair in enumerate(zip(self.student_blocks.features, self.teacher_blocks.features, strict=True), start=1):
            if pair[0].shape != pair[1].shape:
                raise ValueError(
                    f"a block of the student cannot stand in for one of the teacher: after block {i} the student has "
                    f"{pair[0]} and the teacher {pair[1]}; take a student of the teacher's width"
                )
        self.start, self.steps = start, steps
        self.steps_taken = 0

    @property
    def rate(self) -> float:
        """p, the probability with which a block is the student's in the next step."""
        return min(1.0, self.start + (1 - self.start) * self.steps_taken / self.steps)

    def forward(self, inputs: Inputs, targets: Real[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the loss ``task/mixed``, or ``task/student`` once all blocks are the student's."""
        rate = self.rate
        if self.training:
            self.steps_taken += 1
        else:
            rate = 1.0  # the student is what is looked at
        if rate == 1.0:
            logits = logits_of(self.student, inputs, **context)
            check_logits(logits, targets)
            return Losses.of({"task/student": task_loss(logits, targets)}, logits)
        # Drawn on the CPU, from torch's generator: a resumed training draws what an uninterrupted one does.
        logits = self.mixed(inputs, (torch.rand(len(self.student_blocks)) < rate).tolist(), **context)
        check_logits(logits, targets)
        return Losses.of({"task/mixed": task_loss(logits, targets)}, logits)

    def get_extra_state(self) -> Tensor:
        """How many steps were taken; kept in checkpoints."""
        return torch.tensor(self.steps_taken)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on after so many steps."""
        self.steps_taken = int(state)

    def mixed(self, inputs: Inputs, replaced: list[bool], **context: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
        """Logits ``(B, K)`` of the teacher with these of its blocks replaced by the student's.

        Args:
            inputs: a batch.
            replaced: for each block, whether it is the student's.
            context: further arguments of both networks.
        """
        self._keep_teacher_frozen()
        with torch.no_grad():
            theirs = self.teacher_blocks.beside(inputs, **context)
            ours = self.student_blocks.beside(inputs, **context)
            x = self.teacher_blocks.entering(inputs, **theirs)
        for own, student, teacher in zip(replaced, self.student_blocks.blocks, self.teacher_blocks.blocks, strict=True):
            x = student(x, **ours) if own else teacher(x, **theirs)
        logits: Tensor = self.teacher_blocks.classifier(x, **theirs)
        # Where no block was drawn nothing is to be learned, but there must be something to go backward through.
        return logits if any(replaced) else logits + 0.0 * next(self.student.parameters()).sum()
