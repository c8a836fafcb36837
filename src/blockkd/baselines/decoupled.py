"""Decoupled knowledge distillation with its schedule."""

from torch import Tensor, nn

from blockkd.baselines.logits import KD
from blockkd.distances import DKD, LogitDistance
from blockkd.schedules import EpochWeight, warmup


class DecoupledKD(KD):
    """DKD as its authors run it: ``L = α · CE(Y^S, y) + β · min(e / E, 1) · d_L(Y^S, Y^T)`` in epoch e = 1, 2, ….

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679; the linear warm-up over
    E = 20 epochs, which the size of the non-target part makes necessary, is that of the authors' experiments. The
    loss itself is the distance ``DKD``, whose own α and β weigh its two parts: α = 1, β = 8 by default, right for
    ResNet32x4 → ResNet8x4; other pairs differ in β. As every distance it also works in plain ``KD`` (without
    warm-up) and in ``BlockKD``; and the warm-up works with every distance.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)``; frozen from here on.
        student: maps a batch to logits ``(B, K)``.
        alpha: weight α of the labels.
        beta: weight β of the teacher's logits after the warm-up.
        warmup_epochs: E, over how many epochs the weight grows to β; 0 for β from the start. ``set_epoch`` tells
            the time.
        distance: the logit distance ``d_L``; by default ``DKD(alpha=1, beta=8, temperature=4)``.

    Raises:
        ValueError: ``warmup_epochs`` is below zero.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        alpha: float = 1.0,
        beta: float = 1.0,
        warmup_epochs: int = 20,
        distance: LogitDistance | None = None,
    ) -> None:
        super().__init__(teacher, student, alpha, beta, distance if distance is not None else DKD())
        self.warmup_epochs, self._warmed = warmup_epochs, EpochWeight()
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs is {warmup_epochs}, expected 0 (no warm-up) or more")
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Tell the method which epoch (from 0) begins; sets the weight of the teacher's logits for it."""
        super().set_epoch(epoch)
        self._warmed.set(self.beta * warmup(epoch, self.warmup_epochs))

    def _beta_now(self) -> float | Tensor:
        return self._warmed.now()
