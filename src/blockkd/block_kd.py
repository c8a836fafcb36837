"""Block-KD, the method: partition + stones + objectives, and nothing else.

Source: Yu et al., "Decoupling Dark Knowledge via Block-wise Logit Distillation for Feature-level Alignment",
arXiv 2411.01547. The authors published no code; ``docs/decisions/`` says what was open and how it was decided.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from blockkd.blocks import Blocks
from blockkd.blockwise import BlockwiseDistiller
from blockkd.calling import Inputs
from blockkd.connectors import connector
from blockkd.distances import KL, LogitDistance
from blockkd.distiller import Losses, check_logits
from blockkd.features import Feature
from blockkd.objectives import task_loss
from blockkd.schedules import EpochWeight
from blockkd.stones import Stones, chosen_stones, stone_logits


class BlockKD(BlockwiseDistiller):
    """Block-wise logit distillation.

    With ``Y^S`` the student's logits, ``Y^T`` the teacher's, ``Y^{N_i}`` those of stepping stone i, ``y`` the labels::

        L_task    = CE(Y^S, y)      + Σ_i w_i · CE(Y^{N_i}, y)
        L_distill = d_L(Y^S, Y^T)   + Σ_i w_i · d_L(Y^{N_i}, Y^T)
        L_cross   = d_L(Y^S, Y^ens) + Σ_i w_i · d_L(Y^{N_i}, Y^ens)       Y^ens = mean_i Y^{N_i}
        L         = α · L_task + β · L_distill + γ · L_cross

    A weight of zero switches its part off, and what nothing needs is not computed: without stones and with γ = 0
    this is plain KD.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)``; frozen from here on.
        student: maps a batch to logits ``(B, K)``; trained in place.
        example: a batch of inputs ``(B, ...)``, by which both networks are cut and the connectors chosen. When left
            out, a size that both networks accept is tried out; inputs of another size are adapted to as they come.
        teacher_blocks, student_blocks: names of submodules after which to cut, or ready-made ``Blocks``; found by
            themselves when left out.
        n_blocks: into how many blocks to cut; by default as many as the network with fewer stages has.
        stones: ``"all"``, ``"last"`` (the cheapest: ``N_n`` costs one classifier), or a list such as ``[2, 3]``.
        make_connector: (student feature, teacher feature) → connector; ``blockkd.connector`` by default.
        alpha, beta, gamma: the weights α, β, γ of the three losses. The paper lets ``L_cross`` start at epoch 200 of
            240: give ``gamma`` together with ``cross_from_epoch``.
        distance: the logit distance ``d_L``; by default ``KL(temperature=4)``.
        stone_weights: the weights w_i, one for each stone chosen; by default ``1 / 2^(n-i)``. A stone of weight 0
            is none.
        cross_from_epoch: the epoch, from 0, from which on ``L_cross`` counts; ``set_epoch`` tells the time.
        detach_ensemble: treat ``Y^ens`` as a target, without gradient through it.

    Raises:
        PartitionError: a network cannot be cut as asked.
        ValueError: weights, stones or features that do not fit; the message says which.
    """

    masks_padding = True  # connectors work token by token, and all that is compared are logits

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Inputs | None = None,
        *,
        teacher_blocks: Blocks | Sequence[str | int] | None = None,
        student_blocks: Blocks | Sequence[str | int] | None = None,
        n_blocks: int | None = None,
        stones: Stones = "all",
        make_connector: Callable[[Feature, Feature], nn.Module] = connector,
        alpha: float = 0.1,
        beta: float = 0.9,
        gamma: float = 0.0,
        distance: LogitDistance | None = None,
        stone_weights: Sequence[float] | None = None,
        cross_from_epoch: int = 0,
        detach_ensemble: bool = True,
    ) -> None:
        super().__init__(
            teacher,
            student,
            example,
            teacher_blocks=teacher_blocks,
            student_blocks=student_blocks,
            n_blocks=n_blocks,
        )
        chosen = chosen_stones(stones, len(self.student_blocks))
        self.stone_weights = _stone_weights(stone_weights, chosen, len(self.student_blocks))
        self.stones = tuple(self.stone_weights)
        self.connect(self.stones, make_connector)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.takes_recorded = beta > 0  # without L_distill nobody asks for the teacher's logits
        self.distance = distance if distance is not None else KL()
        self.cross_from_epoch = cross_from_epoch
        self._cross_weight = EpochWeight(gamma if cross_from_epoch <= 0 else 0.0)
        self.detach_ensemble = detach_ensemble
        _check_weights(alpha=alpha, beta=beta, gamma=gamma)
        if not alpha and not beta and (cross_from_epoch > 0 or not self.stones):
            raise ValueError(
                f"only gamma is above zero, but L_cross needs stones (got {list(self.stones)}) and starts at epoch "
                f"{cross_from_epoch}: nothing would be learned; give alpha or beta a weight"
            )
        if gamma and not self.stones:
            warnings.warn(f"gamma is {gamma} but there are no stones, so L_cross has no effect", stacklevel=2)

    def forward(
        self,
        inputs: Inputs,
        targets: Real[Tensor, " B"],
        *,
        recorded: Float[Tensor, "B K"] | None = None,
        **context: Float[Tensor, "B ..."],
    ) -> Losses:
        """One batch → the losses ``task/student``, ``task/stone_i``, ``distill/…`` and ``cross/…``.

        Args:
            inputs: a batch ``(B, ...)``, one tensor or named ones.
            targets: labels ``(B,)``, classes, or numbers of a regression: CE and ``d_L`` are then squared errors.
            recorded: what the teacher has said of this batch before, ``(B, K)``, instead of running it whole; the
                stones go through its blocks all the same.
            context: further arguments of both networks.
        """
        features, logits = self.student_features(inputs, **context)
        stones = self._stone_logits(features, inputs, **context)
        learners = {"student": logits} | {f"stone_{i}": stones[i] for i in stones}
        weights = {"student": 1.0} | {f"stone_{i}": self.stone_weights[i] for i in stones}
        teacher = self.teacher_logits(inputs, recorded, **context) if self.beta else None
        check_logits(logits, targets, teacher, *stones.values())

        parts: dict[str, tuple[float | Tensor, Callable[[Tensor], Tensor]]] = {}
        if self.alpha:
            parts["task"] = self.alpha, lambda learner: task_loss(learner, targets)
        if teacher is not None:
            parts["distill"] = self.beta, lambda learner: self.distance(learner, teacher, targets)
        if self.gamma and stones and self._cross_weight.counts():
            ensemble = torch.stack(list(stones.values())).mean(dim=0)
            ensemble = ensemble.detach() if self.detach_ensemble else ensemble
            parts["cross"] = self._cross_weight.now(), lambda learner: self.distance(learner, ensemble, targets)
        terms = {
            f"{part}/{name}": weight * weights[name] * loss(learner)
            for part, (weight, loss) in parts.items()
            for name, learner in learners.items()
        }
        return Losses.of(terms, logits)

    @torch.no_grad()
    def all_logits(self, inputs: Inputs, **context: Float[Tensor, "B ..."]) -> dict[str, Float[Tensor, "B K"]]:
        """The logits ``(B, K)`` of ``student``, of every ``stone_i`` and of ``teacher``, without gradient.

        Args:
            inputs: a batch ``(B, ...)``, one tensor or named ones.
            context: further arguments of both networks.
        """
        features, logits = self.student_features(inputs, **context)
        stones = self._stone_logits(features, inputs, **context)
        teacher = self.teacher_logits(inputs, **context)
        return {"student": logits, **{f"stone_{i}": stones[i] for i in stones}, "teacher": teacher}

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch (from 0) begins: ``L_cross`` counts from ``cross_from_epoch`` on."""
        super().set_epoch(epoch)
        self._cross_weight.set(self.gamma if epoch >= self.cross_from_epoch else 0.0)

    def check_schedule(self, epochs: int) -> None:
        """Warn when ``L_cross`` would start after the last epoch."""
        if self.gamma and self.cross_from_epoch >= epochs:
            warnings.warn(
                f"L_cross has no effect: it starts at epoch {self.cross_from_epoch} and training ends after {epochs}; "
                "lower cross_from_epoch",
                stacklevel=2,
            )

    def _stone_logits(
        self, features: Sequence[Tensor], inputs: Inputs, **context: Float[Tensor, "B ..."]
    ) -> dict[int, Float[Tensor, "B K"]]:
        if not self.stones:
            return {}
        self._keep_teacher_frozen()
        connected = self._connected(features)
        with torch.no_grad():
            beside = self.teacher_blocks.beside(inputs, **context)
        return stone_logits(self.teacher_blocks, connected, **beside)

    def _connected(self, features: Sequence[Tensor]) -> dict[int, Float[Tensor, "B ..."]]:
        return {i: self.connectors[str(i)](features[i - 1]) for i in self.stones}


def _stone_weights(given: Sequence[float] | None, stones: Sequence[int], n: int) -> dict[int, float]:
    if given is None:
        return {i: 2.0 ** (i - n) for i in stones}
    if len(given) != len(stones):
        raise ValueError(f"stone_weights has {len(given)} weights for the {len(stones)} stones {list(stones)}")
    if any(weight < 0 for weight in given):
        raise ValueError(f"stone_weights is {list(given)}, expected weights of zero or more")
    return {i: weight for i, weight in zip(stones, given, strict=True) if weight}  # of weight 0: not taken


def _check_weights(**weights: float) -> None:
    wrong = {name: weight for name, weight in weights.items() if weight < 0}
    if wrong or not any(weights.values()):
        raise ValueError(f"the weights are {wrong or weights}, expected zero or more, and one above zero")
