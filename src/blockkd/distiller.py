"""What every method is to its user: ``losses = distiller(inputs, targets)``."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from blockkd.calling import logits_of
from blockkd.ranks import across_ranks, world_size


@dataclass(frozen=True)
class Losses:
    """What one step gives.

    Attributes:
        total: scalar to call ``backward()`` on; the sum of ``terms``.
        terms: the weighted contributions by name (``"task/student"``, ``"distill/stone_2"``, ...), scalars.
        logits: the student's logits ``(B, K)``, without gradient, for metrics.
    """

    total: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]
    logits: Float[Tensor, "B K"]

    @classmethod
    def of(cls, terms: Mapping[str, Float[Tensor, ""]], logits: Float[Tensor, "B K"]) -> "Losses":
        """Sum ``terms`` up to the total. Raises ValueError when there is no term: nothing would be learned."""
        if not terms:
            raise ValueError("no loss term is left: every weight is zero; give at least one weight above zero")
        total = torch.stack(list(terms.values())).sum()
        return cls(total=total, terms=terms, logits=logits.detach())


class Distiller(nn.Module, ABC):
    """Holds the student, which learns, and the teacher, which is frozen.

    The teacher is trained, gets no gradient, and stays in evaluation mode whatever ``train()`` is called on, so
    its batch-norm statistics never move and its dropout is off. It is deliberately not a submodule:
    ``parameters()`` are exactly what is to be optimised, and ``state_dict()`` (so every checkpoint) holds the
    student and the method's own modules, never the teacher. ``to()``, ``half()`` and their like do reach it.

    Args:
        teacher: maps a batch to logits ``(B, K)``; ``None`` for methods without one.
        student: maps a batch to logits ``(B, K)``; trained in place.

    Attributes:
        reads_batch_norm: whether the method looks at the teacher's batch norm layers themselves, so that they may not
            be folded away.
        needs_indices: whether ``forward`` wants to know which training samples it is given, as ``indices=`` of shape
            ``(B,)``.
        compiles: whether a step can be compiled as one graph.
        leaves_unused: whether a step may leave out some of the parameters, which DistributedDataParallel must be told
            (``find_unused_parameters``).
        takes_recorded: whether of the teacher's own forward pass ``forward`` needs the logits and nothing else, so that
            they may be given to it as ``recorded=`` of shape ``(B, K)``.
    """

    reads_batch_norm: ClassVar[bool] = False
    compiles: ClassVar[bool] = True
    leaves_unused: bool = False
    needs_indices: bool = False
    takes_recorded: bool = False

    def __init__(self, teacher: nn.Module | None, student: nn.Module) -> None:
        super().__init__()
        if teacher is not None:
            _check_apart(teacher, student)
            teacher.requires_grad_(False).eval()
        self.student = student.train()  # as a new module is; it may come from an evaluation
        self._teacher = (teacher,)  # in a tuple, which nn.Module does not register
        self.epoch = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Losses:
        """``forward``, in training across all processes that train together; see ``blockkd.ranks``."""
        if world_size() == 1:
            return super().__call__(*args, **kwargs)
        with across_ranks(self.training):
            return super().__call__(*args, **kwargs)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, or None."""
        return self._teacher[0]

    @abstractmethod
    def forward(self, inputs: Any, targets: Real[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch ``(B, ...)`` with labels ``(B,)``, classes or numbers → named losses."""

    def set_epoch(self, epoch: int) -> None:
        """Tell the method which epoch (from 0) begins; schedules such as the start of ``L_cross`` hang on it."""
        self.epoch = epoch

    def check_schedule(self, epochs: int) -> None:
        """Warn of settings that have no effect in a training of so many epochs."""
        del epochs

    @torch.no_grad()
    def teacher_logits(
        self, inputs: Any, recorded: Float[Tensor, "B K"] | None = None, **context: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B K"]:
        """The teacher's logits ``(B, K)``, without gradient.

        Args:
            inputs: a batch ``(B, ...)``.
            recorded: what the teacher has said of this batch before; then it is not run.
            context: further arguments of the teacher.

        Raises:
            TypeError: this method has no teacher.
        """
        if self.teacher is None:
            raise TypeError(f"{type(self).__name__} has no teacher")
        if recorded is not None:
            return recorded
        self._keep_teacher_frozen()
        return logits_of(self.teacher, inputs, **context)

    def _keep_teacher_frozen(self) -> None:
        # Someone may have called train() or requires_grad_() on the teacher itself, or on one of its parts.
        if self.teacher is not None and any(module.training for module in self.teacher.modules()):
            self.teacher.eval()
        if self.teacher is not None and any(parameter.requires_grad for parameter in self.teacher.parameters()):
            self.teacher.requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)
        return self


def check_logits(student: Float[Tensor, "..."], targets: Tensor, *others: Float[Tensor, "..."] | None) -> None:
    """Compare what the networks say with each other and with the labels.

    Labels are looked at only where that costs no wait for a device: on the CPU, and outside of compiled code.

    Args:
        student: the student's logits ``(B, K)``.
        targets: labels ``(B,)``, classes, or numbers of a regression.
        others: logits of the teacher, or that come out of it, which must have the same shape.

    Raises:
        ValueError: logits that are not ``(B, K)``, class counts that differ, labels outside ``0 … K-1``.
    """
    if student.ndim != 2:
        raise ValueError(f"the student gave logits of shape {tuple(student.shape)}, expected (batch, classes)")
    numbers = targets.is_floating_point() and student.shape[1] == 1  # a regression
    if targets.shape != student.shape[:1] or (targets.is_floating_point() and not numbers):
        raise ValueError(
            f"the labels are {tuple(targets.shape)} of {targets.dtype}, expected one whole number for each of the "
            f"{len(student)} examples"
        )
    for other in others:
        if other is not None and other.shape != student.shape:
            raise ValueError(
                f"the teacher gave logits of shape {tuple(other.shape)} and the student {tuple(student.shape)}: "
                "both must tell the same classes apart; give one of them a head with as many outputs as the other"
            )
    if targets.device.type == "cpu" and len(targets) and not numbers and not torch.compiler.is_compiling():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= student.shape[1]:
            wrong = low if low < 0 else high
            raise ValueError(
                f"label {wrong} is out of range for {student.shape[1]} classes: labels must lie in "
                f"0 … {student.shape[1] - 1}"
            )


def _check_apart(teacher: nn.Module, student: nn.Module) -> None:
    theirs = {id(parameter) for parameter in teacher.parameters()}
    shared = [name for name, parameter in student.named_parameters() if id(parameter) in theirs]
    if shared:
        raise ValueError(
            f"teacher and student share {len(shared)} parameters ({shared[0]}, ...): freezing the teacher would "
            "freeze the student; give the student a copy (copy.deepcopy)"
        )
