"""A Distiller that sees both networks block by block."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from blockkd.blocks import Blocks, PartitionError
from blockkd.calling import Inputs, first_rows, logits_of, resolution
from blockkd.distiller import Distiller
from blockkd.examples import example_for
from blockkd.features import Feature
from blockkd.partitioning import cut_pair, partition, survey
from blockkd.tracing import undisturbed


class BlockwiseDistiller(Distiller):
    """Holds student and frozen teacher, cut into the same number of blocks, and connectors between them.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)``; frozen from here on.
        student: maps a batch to logits ``(B, K)``; trained in place.
        example: a batch of inputs ``(B, ...)``, by which both networks are cut and the connectors chosen. When left
            out, a size that both networks accept is tried out; inputs of another size are adapted to as they come.
            Networks that take named tensors (``input_ids``, ``attention_mask``, ...) need one, a mapping of those.
        teacher_blocks, student_blocks: names of submodules after which to cut, or ready-made ``Blocks``; found by
            themselves when left out. Layers of transformers can be named by their numbers: ``[2, 4, 12]``.
        n_blocks: into how many blocks to cut; by default as many as the network with fewer stages has. Transformers
            that take named tensors are cut into as many as the network with fewer layers has, of equal length.

    Attributes:
        masks_padding: whether the method leaves padding out of all that it compares, so that it can be used on
            sequences of different lengths.

    Raises:
        PartitionError: a network cannot be cut as asked.
        TypeError: the networks take named tensors, and the method would compare their padding as well.
    """

    masks_padding: ClassVar[bool] = False
    connectors: nn.ModuleDict

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Inputs | None = None,
        *,
        teacher_blocks: Blocks | Sequence[str | int] | None = None,
        student_blocks: Blocks | Sequence[str | int] | None = None,
        n_blocks: int | None = None,
    ) -> None:
        super().__init__(teacher, student)
        if example is None:
            example = example_for(teacher, student)
        if isinstance(example, Mapping) and not self.masks_padding:
            raise TypeError(
                f"{type(self).__name__} compares features place by place and does not know which places are padding: "
                "for networks that take named tensors choose another method"
            )
        self._blocks = _matching_blocks(teacher, student, example, teacher_blocks, student_blocks, n_blocks)
        if self.student_blocks.training_error is not None:
            raise PartitionError(self.student_blocks.training_error)
        self.teacher_blocks.requires_grad_(False).eval()
        self.connectors = nn.ModuleDict()
        self._input_shape = resolution(example)

    @property
    def teacher_blocks(self) -> Blocks:
        """The frozen teacher, cut."""
        return self._blocks[0]

    @property
    def student_blocks(self) -> Blocks:
        """The student, cut."""
        return self._blocks[1]

    def connect(self, stages: Iterable[int], make: Callable[[Feature, Feature], nn.Module]) -> None:
        """Make a connector for each of these blocks, from the student's feature after it to the teacher's.

        Args:
            stages: numbers of blocks, 1 … n.
            make: (student feature, teacher feature) → connector.
        """
        for i in stages:
            pair = self.student_blocks.features[i - 1], self.teacher_blocks.features[i - 1]
            self.connectors[str(i)] = make(*pair)
        self.connectors.to(next(p for p in self.student.parameters() if p.is_floating_point()))

    def student_features(
        self, inputs: Inputs, **context: Float[Tensor, "B ..."]
    ) -> tuple[list[Float[Tensor, "B ..."]], Float[Tensor, "B K"]]:
        """The student's features after each block, and its logits ``(B, K)``; fits the connectors to the inputs."""
        self._adapt(inputs, **context)
        return self.student_blocks.run(inputs, **context)

    @torch.no_grad()
    def teacher_features(
        self, inputs: Inputs, **context: Float[Tensor, "B ..."]
    ) -> tuple[list[Float[Tensor, "B ..."]], Float[Tensor, "B K"]]:
        """The teacher's features after each block, and its logits ``(B, K)``, without gradient."""
        self._keep_teacher_frozen()
        return self.teacher_blocks.run(inputs, **context)

    def train(self, mode: bool = True) -> "BlockwiseDistiller":
        """Switch student and connectors; the teacher stays in evaluation mode."""
        super().train(mode)
        self.student_blocks.train(mode)
        return self

    def _keep_teacher_frozen(self) -> None:
        super()._keep_teacher_frozen()
        if any(module.training for module in self.teacher_blocks.modules()):
            self.teacher_blocks.eval()

    def _cut_again(self, blocks: Blocks, inputs: Inputs) -> Blocks:
        """Blocks that hold for these inputs: new ones, at the same places, where the old ones hold sizes."""
        if blocks.only_for is None or blocks.only_for == resolution(inputs):
            return blocks
        return partition(
            blocks.network, first_rows(inputs, 2), after=blocks.names, frozen=blocks is self.teacher_blocks
        )

    def _adapt(self, inputs: Inputs, **context: Float[Tensor, "B ..."]) -> None:
        """Fit the connectors to the resolution of these inputs, if it is another than before."""
        if resolution(inputs) == self._input_shape:
            return
        self._blocks = self._cut_again(self.teacher_blocks, inputs), self._cut_again(self.student_blocks, inputs)
        few = {name: value[:2] for name, value in context.items()}
        theirs, ours = (blocks.measure(first_rows(inputs, 2), **few) for blocks in self._blocks)
        for stage, connector in self.connectors.items():
            i = int(stage)
            new = ours[i - 1], theirs[i - 1]
            old = self.student_blocks.features[i - 1], self.teacher_blocks.features[i - 1]
            if [f.channels for f in new] != [f.channels for f in old]:
                raise ValueError(
                    f"connector {i} takes features of {old[0].channels} to {old[1].channels} channels, inputs of shape "
                    f"{tuple(resolution(inputs))} give {new[0].channels} and {new[1].channels}: build "
                    f"{type(self).__name__} with example=inputs"
                )
            fit = getattr(connector, "fit", None)
            if fit is not None:
                fit(*new)
        self._input_shape = resolution(inputs)


def _matching_blocks(
    teacher: nn.Module,
    student: nn.Module,
    example: Inputs,
    teacher_blocks: Blocks | Sequence[str | int] | None,
    student_blocks: Blocks | Sequence[str | int] | None,
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
    if any(isinstance(wish, str) for wish in wishes):
        raise PartitionError(f"teacher_blocks and student_blocks must be lists of names, got {wishes}")
    if any(isinstance(wish, Blocks) for wish in wishes):
        n = counts.pop()
        return (
            _blocks_of(teacher, example, teacher_blocks, n, frozen=True),
            _blocks_of(student, example, student_blocks, n, frozen=False),
        )
    theirs, ours = survey(teacher, example), survey(student, example)
    names = [wish for wish in (teacher_blocks, student_blocks) if not isinstance(wish, Blocks)]
    pair = cut_pair(theirs, ours, names[0], names[1], n_blocks)
    return theirs.cut(pair[0], frozen=True), ours.cut(pair[1])


def _blocks_of(
    network: nn.Module, example: Inputs, wish: Blocks | Sequence[str | int] | None, n: int, frozen: bool
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
        same = torch.allclose(logits_of(network, example), wish(example))
    if not same:
        raise PartitionError(
            f"the Blocks given for {type(network).__name__}, run one after the other, do not give its logits"
        )
    return wish
