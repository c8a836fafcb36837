"""Block-KD, the method: partition + stones + objectives, and nothing else.

Source: Yu et al., "Decoupling Dark Knowledge via Block-wise Logit Distillation for Feature-level Alignment",
arXiv 2411.01547. The authors published no code; ``docs/decisions/`` says what was open and how it was decided.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from blockkd.connectors import connector
from blockkd.distiller import Distiller, Losses, check_logits
from blockkd.examples import example_for
from blockkd.features import Feature
from blockkd.objectives import KL, LogitDistance, cross_entropy
from blockkd.partition import Blocks, PartitionError, Survey, partition, partition_pair
from blockkd.stones import Stones, chosen_stones, stone_logits
from blockkd.tracing import undisturbed


class BlockKD(Distiller):
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
        alpha, beta, gamma: the weights α, β, γ of the three losses.
        distance: the logit distance ``d_L``; by default ``KL(temperature=4)``.
        stone_weights: the weights w_i, one for each stone chosen; by default ``1 / 2^(n-i)``.
        cross_from_epoch: the epoch, from 0, from which on ``L_cross`` counts; ``set_epoch`` tells the time.
        detach_ensemble: treat ``Y^ens`` as a target, without gradient through it.

    Raises:
        PartitionError: a network cannot be cut as asked.
        ValueError: weights, stones or features that do not fit; the message says which.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        teacher_blocks: Blocks | Sequence[str] | None = None,
        student_blocks: Blocks | Sequence[str] | None = None,
        n_blocks: int | None = None,
        stones: Stones = "all",
        make_connector: Callable[[Feature, Feature], nn.Module] = connector,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        distance: LogitDistance | None = None,
        stone_weights: Sequence[float] | None = None,
        cross_from_epoch: int = 0,
        detach_ensemble: bool = True,
    ) -> None:
        super().__init__(teacher, student)
        if example is None:
            example = example_for(teacher, student)
        self._blocks = _matching_blocks(teacher, student, example, teacher_blocks, student_blocks, n_blocks)
        if self.student_blocks.training_error is not None:
            raise PartitionError(self.student_blocks.training_error)
        self.teacher_blocks.requires_grad_(False).eval()
        self.stones = chosen_stones(stones, len(self.student_blocks))
        self.connectors = nn.ModuleDict()
        for i in self.stones:
            pair = self.student_blocks.features[i - 1], self.teacher_blocks.features[i - 1]
            self.connectors[str(i)] = make_connector(*pair)
        self.connectors.to(next(p for p in student.parameters() if p.is_floating_point()))
        self._input_shape = example.shape[1:]
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.distance = distance if distance is not None else KL()
        self.stone_weights = _stone_weights(stone_weights, self.stones, len(self.student_blocks))
        self.cross_from_epoch = cross_from_epoch
        self.detach_ensemble = detach_ensemble
        _check_weights(alpha=alpha, beta=beta, gamma=gamma)
        if gamma and not self.stones:
            warnings.warn(f"gamma is {gamma} but there are no stones, so L_cross has no effect", stacklevel=2)

    @property
    def teacher_blocks(self) -> Blocks:
        """The frozen teacher, cut."""
        return self._blocks[0]

    @property
    def student_blocks(self) -> Blocks:
        """The student, cut."""
        return self._blocks[1]

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``task/stone_i``, ``distill/…`` and ``cross/…``."""
        self._adapt(inputs, **context)
        features, logits = self.student_blocks.run(inputs, **context)
        stones = self._stone_logits(features, **context)
        learners = {"student": logits} | {f"stone_{i}": stones[i] for i in stones}
        weights = {"student": 1.0} | {f"stone_{i}": self.stone_weights[i] for i in stones}
        teacher = self.teacher_logits(inputs, **context)
        check_logits(logits, targets, teacher)

        parts: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {}
        if self.alpha:
            parts["task"] = self.alpha, lambda learner: cross_entropy(learner, targets)
        if self.beta:
            parts["distill"] = self.beta, lambda learner: self.distance(learner, teacher, targets)
        if self.gamma and stones and self.epoch >= self.cross_from_epoch:
            ensemble = torch.stack(list(stones.values())).mean(dim=0)
            ensemble = ensemble.detach() if self.detach_ensemble else ensemble
            parts["cross"] = self.gamma, lambda learner: self.distance(learner, ensemble, targets)
        terms = {
            f"{part}/{name}": weight * weights[name] * loss(learner)
            for part, (weight, loss) in parts.items()
            for name, learner in learners.items()
        }
        return Losses.of(terms, logits)

    def train(self, mode: bool = True) -> "BlockKD":
        """Switch student and connectors; the teacher stays in evaluation mode."""
        super().train(mode)
        self.student_blocks.train(mode)
        return self

    def _stone_logits(
        self, features: Sequence[Tensor], **context: Float[Tensor, "B ..."]
    ) -> dict[int, Float[Tensor, "B K"]]:
        used = [i for i in self.stones if self.stone_weights[i]]
        if not used:
            return {}
        self._keep_teacher_frozen()
        connected = {i: self.connectors[str(i)](features[i - 1]) for i in used}
        return stone_logits(self.teacher_blocks, connected, **context)

    def _keep_teacher_frozen(self) -> None:
        super()._keep_teacher_frozen()
        if any(module.training for module in self.teacher_blocks.modules()):
            self.teacher_blocks.eval()

    def _adapt(self, inputs: Tensor, **context: Float[Tensor, "B ..."]) -> None:
        """Fit the connectors to the resolution of these inputs, if it is another than before."""
        if inputs.shape[1:] == self._input_shape:
            return
        fixed = [blocks for blocks in self._blocks if blocks.fixed]
        if fixed:
            raise ValueError(
                f"{type(fixed[0].network).__name__} was cut for inputs {tuple(self._input_shape)} and holds sizes of "
                f"them, got {tuple(inputs.shape[1:])}: build BlockKD with example=inputs"
            )
        few = {name: value[:2] for name, value in context.items()}
        theirs, ours = (blocks.measure(inputs[:2], **few) for blocks in self._blocks)
        for i in self.stones:
            new = ours[i - 1], theirs[i - 1]
            old = self.student_blocks.features[i - 1], self.teacher_blocks.features[i - 1]
            if [f.channels for f in new] != [f.channels for f in old]:
                raise ValueError(
                    f"stone {i} connects features of {old[0].channels} and {old[1].channels} channels, inputs of shape "
                    f"{tuple(inputs.shape[1:])} give {new[0].channels} and {new[1].channels}: build BlockKD with "
                    "example=inputs"
                )
            fit = getattr(self.connectors[str(i)], "fit", None)
            if fit is not None:
                fit(*new)
        self._input_shape = inputs.shape[1:]


def _matching_blocks(
    teacher: nn.Module,
    student: nn.Module,
    example: Tensor,
    teacher_blocks: Blocks | Sequence[str] | None,
    student_blocks: Blocks | Sequence[str] | None,
    n_blocks: int | None,
) -> tuple[Blocks, Blocks]:
    """Both networks cut into the same number of blocks."""
    wishes = [wish for wish in (teacher_blocks, student_blocks) if wish is not None]
    counts = {len(wish) for wish in wishes} | ({n_blocks} if n_blocks is not None else set())
    if len(counts) > 1:
        raise PartitionError(
            f"teacher and student must have the same number of blocks, got {sorted(counts)}: name as many cuts in "
            "one as in the other"
        )
    if not wishes:
        surveys = Survey(teacher, example), Survey(student, example)
        theirs, ours = partition_pair(*surveys, n_blocks)
        return surveys[0].cut(theirs, frozen=True), surveys[1].cut(ours)
    n = counts.pop()
    return (
        _blocks_of(teacher, example, teacher_blocks, n, frozen=True),
        _blocks_of(student, example, student_blocks, n, frozen=False),
    )


def _blocks_of(
    network: nn.Module, example: Tensor, wish: Blocks | Sequence[str] | None, n: int, frozen: bool
) -> Blocks:
    if not isinstance(wish, Blocks):
        return partition(network, example, n, after=wish, frozen=frozen)
    known = {id(parameter) for parameter in network.parameters()}
    strangers = [name for name, parameter in wish.named_parameters() if id(parameter) not in known]
    if strangers:
        raise PartitionError(
            f"the Blocks given for {type(network).__name__} hold parameters that are not the network's "
            f"({strangers[0]}, ...): make them of the network's own submodules"
        )
    if wish.features:
        return wish
    wish.features = wish.measure(example)
    with torch.no_grad(), undisturbed(network, training=False), undisturbed(wish, training=False):
        same = torch.allclose(network(example), wish(example))
    if not same:
        raise PartitionError(
            f"the Blocks given for {type(network).__name__}, run one after the other, do not give its logits"
        )
    return wish


def _stone_weights(given: Sequence[float] | None, stones: Sequence[int], n: int) -> dict[int, float]:
    if given is None:
        return {i: 2.0 ** (i - n) for i in stones}
    if len(given) != len(stones):
        raise ValueError(f"stone_weights has {len(given)} weights for the {len(stones)} stones {list(stones)}")
    if any(weight < 0 for weight in given):
        raise ValueError(f"stone_weights is {list(given)}, expected weights of zero or more")
    return dict(zip(stones, given, strict=True))


def _check_weights(**weights: float) -> None:
    wrong = {name: weight for name, weight in weights.items() if weight < 0}
    if wrong or not any(weights.values()):
        raise ValueError(f"the weights are {wrong or weights}, expected zero or more, and one above zero")
