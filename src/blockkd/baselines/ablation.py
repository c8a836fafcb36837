"""Block-KD with less in it: what each of its parts brings (the paper's Fig. 4 (b)).

The steps are a baseline without stones, which is plain KD; the stones' task loss; the stones' distillation loss; and
``L_cross`` from a late epoch. The first is ``KD``, the second is here, the third is ``BlockKD`` with γ = 0 and the last
``BlockKD``. The recipe ``ablation`` trains them side by side.
"""

from typing import Any

from jaxtyping import Float, Real
from torch import Tensor

from blockkd.block_kd import BlockKD
from blockkd.calling import Inputs
from blockkd.distiller import Losses


class StonesByLabels(BlockKD):
    """Block-KD whose stones learn from labels alone; only the student learns from the teacher's logits.

    ``L = α · L_task + β · d_L(Y^S, Y^T)``: the second step of the paper's Fig. 4 (b).

    Args:
        args, kwargs: those of ``BlockKD``. γ stays 0.

    Raises:
        ValueError: γ is above zero: ``L_cross`` is a later step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.gamma:
            raise ValueError(
                f"gamma is {self.gamma}, but stones that learn by labels alone have no L_cross: leave it 0"
            )

    def forward(
        self,
        inputs: Inputs,
        targets: Real[Tensor, " B"],
        *,
        recorded: Float[Tensor, "B K"] | None = None,
        **context: Float[Tensor, "B ..."],
    ) -> Losses:
        """One batch → the losses ``task/student``, ``task/stone_i`` and ``distill/student``."""
        losses = super().forward(inputs, targets, recorded=recorded, **context)
        kept = {name: term for name, term in losses.terms.items() if not name.startswith("distill/stone_")}
        return Losses.of(kept, losses.logits)
