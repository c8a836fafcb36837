"""Any network → blocks: where it can be cut is found by following its forward once."""

import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedParameter

from blockkd.blocks import Block, Blocks, PartitionError
from blockkd.calling import Inputs
from blockkd.cuts import CutError, CutPoint, cut_points, depths
from blockkd.examples import zeros_filled
from blockkd.segments import Segment, split
from blockkd.stack_blocks import StackSurvey
from blockkd.stages import align, choose, counterparts, stage_ends
from blockkd.tracing import Trace, TraceError, trace, undisturbed


class Survey:
    """A network's cut points, found once, from which it can be cut in several ways.

    Args:
        network: maps one tensor to logits ``(B, K)``.
        example: input ``(B, ...)`` of the size it will see, on the network's device.

    Raises:
        PartitionError: the network cannot be followed.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        network = getattr(network, "_orig_mod", network)  # behind torch.compile stands the network itself
        self.network, self.label = network, type(network).__name__
        self.examples = (_batch_of(example, 2), _batch_of(example, 3))
        self._check_accepted()
        try:
            one, two = self._traces(training=False)
        except TraceError as error:
            raise PartitionError(self._untraceable(error)) from error
        if trouble := _output_trouble(one, len(self.examples[0])):
            raise PartitionError(f"{self.label} {trouble}")
        self.opaque = one.opaque
        if one.checkpointed:
            warnings.warn(
                f"{self.label} checkpoints its activations (in {min(one.checkpointed) or 'forward'!r} first): where a "
                "cut goes through such a place they are kept instead, which takes memory",
                stacklevel=3,
            )
        self.points = cut_points(network, one, two)
        self.ends = stage_ends(self.points, depths(network, one)[one.graph.output_node()])

    def choose(self, n_blocks: int | None = None) -> list[CutPoint]:
        """Cut points for so many blocks, by default one per stage.

        Raises:
            PartitionError: there are not so many.
        """
        if n_blocks is not None and n_blocks < 1:
            raise PartitionError(f"n_blocks is {n_blocks}, expected at least 1")
        try:
            return choose(self.points, self.ends, n_blocks)
        except CutError as error:
            raise PartitionError(f"{self.label}: {error}. {self.advice()}") from error

    def named(self, names: Sequence[str | int]) -> list[CutPoint]:
        """The cut points at the outputs of these submodules.

        Raises:
            PartitionError: a name is unknown, out of order, or no cut point.
        """
        by_name = {name: point for point in self.points for name in (*point.aliases, point.name)}
        for name in names:
            if name not in by_name:
                raise PartitionError(self._not_a_cut(str(name)))
        found = [by_name[str(name)] for name in names]
        order = sorted({self.points.index(point) for point in found})
        if found != [self.points[i] for i in order]:
            raise PartitionError(
                f"{self.label}: the cuts {list(names)} must be different and in the order in which the network "
                f"reaches them: {[self.points[i].name for i in order]}"
            )
        return found

    def cut(self, points: Sequence[CutPoint], *, frozen: bool = False) -> Blocks:
        """Cut after these points. ``frozen``: for evaluation mode only, as a teacher is used.

        Raises:
            PartitionError: the blocks do not give what the network gives.
        """
        try:
            evaluation = self._segments(points, training=False)
        except (TraceError, CutError) as error:
            raise PartitionError(f"{self.label} cannot be cut there: {error}. {self.advice()}") from error
        training, trouble = evaluation, None
        if not frozen:
            try:
                training = self._segments(points, training=True)
            except (TraceError, CutError) as error:
                trouble = f"{self.label} cannot be cut there in training mode: {error}"
        pieces = [Block(self.network, *pair) for pair in zip(training, evaluation, strict=True)]
        blocks = Blocks(
            pieces[:-1],
            pieces[-1],
            features=[point.feature for point in points],
            names=[point.name for point in points],
            network=self.network,
            training_error="it was cut for evaluation mode only" if frozen else trouble,
            only_for=self.examples[0].shape[1:] if any(s.fixed for s in (*training, *evaluation)) else None,
        )
        self._check_equal(blocks, self.examples[0][:1], training=False)
        self._check_equal(blocks, self.examples[0], training=False)
        if blocks.training_error is None:
            try:
                self._check_equal(blocks, self.examples[0], training=True)
            except PartitionError as error:
                blocks.training_error = str(error)
        return blocks

    def advice(self) -> str:
        """The cut points that exist, and a call that would work."""
        if not self.ends:
            return "Nowhere inside does one tensor carry everything: give blockkd.Blocks(...) made by hand"
        shown = [point for point in self.points if point.aliases] or self.points
        listed = ", ".join(f"{point.name} ({point.feature})" for point in shown[:40])
        more = f" and {len(shown) - 40} more" if len(shown) > 40 else ""
        works = [point.name for point in choose(self.points, self.ends, None)]
        return (
            f"It can be cut after: {listed}{more}. This call works: blockkd.partition(network, example, after={works})"
        )

    def _traces(self, training: bool, opened: set[str] | None = None) -> tuple[Trace, Trace]:
        found = []
        for example in self.examples:
            with undisturbed(self.network, training):
                found.append(trace(self.network, example, opened))
        if len(found[0].graph.nodes) != len(found[1].graph.nodes):
            raise TraceError("forward takes another way when the batch has another size")
        return found[0], found[1]

    def _segments(self, points: Sequence[CutPoint], training: bool) -> list[Segment]:
        # Modules that no cut goes through stay single calls, so that all they do in Python stays alive. Some hide
        # what they need (an argument that they never use): then everything is opened.
        keys = [point.key for point in points]
        around = {name for key in keys for name, _ in (key[1][:-1] if key[0] == "output" else key[1])}
        try:
            return self._split(points, training, around)
        except CutError:
            return self._split(points, training, None)

    def _split(self, points: Sequence[CutPoint], training: bool, opened: set[str] | None) -> list[Segment]:
        one, two = self._traces(training, opened)
        if trouble := _output_trouble(one, len(self.examples[0])):
            raise CutError(f"it {trouble}")
        fixed = one.fixed or two.fixed
        return [Segment(segment.graph, segment.fixed or fixed) for segment in split(self.network, one, two, points)]

    def _check_accepted(self) -> None:
        example = self.examples[0]
        if any(isinstance(p, UninitializedParameter) for p in self.network.parameters()):
            raise PartitionError(f"{self.label} has lazy layers without weights: run a batch through it first")
        if isinstance(self.network, torch.jit.ScriptModule):
            raise PartitionError(
                f"{self.label} is a TorchScript module, which cannot be followed: give the module itself"
            )
        try:
            with torch.no_grad(), undisturbed(self.network, training=False):
                self.network(example)
        except Exception as error:  # a network's own code runs here, and may raise anything
            reason = str(error).partition("\n")[0]
            raise PartitionError(
                f"{self.label} does not accept an example of shape {tuple(example.shape)} and {example.dtype} on "
                f"{example.device} ({type(error).__name__}: {reason}): give one as it will see"
            ) from error

    def _check_equal(self, blocks: Blocks, x: Tensor, training: bool) -> None:
        if x.is_floating_point():
            x = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        results = []
        for forward in (self.network, blocks):
            with torch.no_grad(), undisturbed(self.network, training), zeros_filled(self.network):
                logits = forward(x)
                results.append([logits, *(buffer.clone() for buffer in self.network.buffers())])
        same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*results, strict=True))
        if not same:
            mode = "training" if training else "evaluation"
            raise PartitionError(
                f"{self.label}: the blocks do not give what the network gives in {mode} mode: its forward does "
                "something that a recorded graph does not repeat. Write its blocks down instead, as "
                "blockkd.Blocks([block_1, ..., block_n], classifier)"
            )

    def _untraceable(self, error: TraceError) -> str:
        children = [name for name, _ in self.network.named_children()]
        return (
            f"{self.label} cannot be cut by itself: {error}. Write its blocks down instead, as "
            f"blockkd.Blocks([block_1, ..., block_n], classifier), from its parts {children}"
        )

    def _not_a_cut(self, name: str) -> str:
        modules = [other for other, _ in self.network.named_modules() if other]
        if name in modules:
            return (
                f"{self.label} cannot be cut after {name!r}: other tensors are still needed there, or its output is "
                f"changed in place later. {self.advice()}"
            )
        near = get_close_matches(name, modules, n=3)
        hint = f", did you mean {' or '.join(map(repr, near))}?" if near else "."
        return f"{self.label} has no submodule {name!r}{hint} {self.advice()}"


def survey(network: nn.Module, example: Inputs) -> Survey | StackSurvey:
    """Find where a network can be cut.

    Networks that take one tensor are followed operation by operation and can be cut wherever one tensor carries
    everything; those that take named tensors are cut between the layers that they run one after the other.

    Raises:
        PartitionError: the network cannot be followed.
    """
    return StackSurvey(network, example) if isinstance(example, Mapping) else Survey(network, example)


def partition(
    network: nn.Module,
    example: Inputs,
    n_blocks: int | None = None,
    *,
    after: Sequence[str | int] | None = None,
    frozen: bool = False,
) -> Blocks:
    """Cut a network into n runnable blocks and a classifier that share its parameters.

    Args:
        network: maps one tensor, or named tensors (``input_ids``, ``attention_mask``, ...), to logits ``(B, K)``.
        example: input ``(B, ...)`` of the size that the network will see, on its device; a few examples do. A mapping
            for networks that take named tensors: sequences may then have any length.
        n_blocks: how many blocks; by default one per stage of constant resolution, or four of equal depth where the
            resolution never changes. Of networks that take named tensors one per layer.
        after: submodules after whose outputs to cut, instead of finding them. Of networks that take named tensors
            layers, by name or by number.
        frozen: the network stays in evaluation mode, as a teacher does; its training mode is not looked at.

    Returns:
        The blocks. Recomposed they equal the network bit for bit, in evaluation and in training mode.

    Raises:
        PartitionError: the network cannot be cut so; the message names the place, the cut points that exist, and
            a call that works.
    """
    if after is not None and n_blocks not in (None, len(after)):
        raise PartitionError(f"n_blocks is {n_blocks} and after names {len(after)} cuts: give one of them")
    if isinstance(after, str):
        raise PartitionError(f"after is {after!r}, expected a list of names, such as [{after!r}]")
    if after is not None and not after:
        raise PartitionError("after names no cut: give the names of submodules, or leave it out")
    found = survey(network, example)
    points = found.choose(n_blocks) if after is None else found.named(after)
    return found.cut(points, frozen=frozen)


def cut_pair(
    teacher: Survey | StackSurvey,
    student: Survey | StackSurvey,
    teacher_names: Sequence[str | int] | None = None,
    student_names: Sequence[str | int] | None = None,
    n_blocks: int | None = None,
) -> tuple[list[CutPoint], list[CutPoint]]:
    """Cut points for teacher and student with the same number of blocks, at stages that match.

    Args:
        teacher, student: the networks' cut points.
        teacher_names, student_names: submodules after which to cut; found when left out, so as to match the other's.
        n_blocks: how many blocks; by default as many as the network with fewer stages has.

    Raises:
        PartitionError: one of the networks has not so many cut points.
    """
    if teacher_names is not None and student_names is not None:
        return teacher.named(teacher_names), student.named(student_names)
    if teacher_names is not None:
        named = teacher.named(teacher_names)
        return named, _matching(student, named)
    if student_names is not None:
        named = student.named(student_names)
        return _matching(teacher, named), named
    n = min(len(teacher.choose()), len(student.choose())) if n_blocks is None else n_blocks
    if n >= 1 and min(len(teacher.ends), len(student.ends)) >= n:
        return align(teacher.ends, student.ends, n)
    return teacher.choose(n), student.choose(n)


def _matching(survey: Survey | StackSurvey, named: Sequence[CutPoint]) -> list[CutPoint]:
    return counterparts(named, survey.ends) if len(survey.ends) >= len(named) else survey.choose(len(named))


def _batch_of(example: Tensor, n: int) -> Tensor:
    if not isinstance(example, Tensor):
        raise PartitionError(f"the example is a {type(example).__name__}, expected a tensor with a batch (B, ...)")
    if example.layout != torch.strided:
        raise PartitionError(f"the example is {example.layout}, expected a dense tensor: give example.to_dense()")
    if example.ndim < 2 or len(example) == 0:
        raise PartitionError(
            f"the example has shape {tuple(example.shape)}: expected a batch (B, ...) of at least one input"
        )
    return example[torch.arange(n, device=example.device) % len(example)]


def _output_trouble(recorded: Trace, batch: int) -> str | None:
    (result,) = recorded.graph.output_node().args
    fact = recorded.facts.get(result) if isinstance(result, fx.Node) else None
    shape = None if fact is None or fact.shape is None else tuple(fact.shape)
    if shape is not None and len(shape) == 2 and shape[0] == batch:
        return None
    got = "several values" if shape is None else f"a tensor {shape} for a batch of {batch}"
    return (
        f"returns {got}, expected logits (batch, classes): switch auxiliary outputs off, or wrap it in a module "
        "whose forward returns the logits alone (blockkd.models.logits_only.returning_logits does so for transformers)"
    )
