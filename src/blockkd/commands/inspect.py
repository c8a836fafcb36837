"""``blockkd inspect``: how a recipe's networks are cut and connected, what its method costs, whether weights fit."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from blockkd import costs
from blockkd.baselines.logits import KD
from blockkd.block_kd import BlockKD
from blockkd.blocks import Blocks, PartitionError
from blockkd.blockwise import BlockwiseDistiller
from blockkd.calling import Inputs, count
from blockkd.commands.checks import build_method, build_network, build_student, check_classes
from blockkd.commands.distill import DEFAULT_RECIPE, all_methods
from blockkd.commands.errors import InvalidInputError, printable, user_input
from blockkd.commands.fitting import quiet
from blockkd.commands.invocation import Invocation
from blockkd.commands.parsing import parse, recipe_parser
from blockkd.commands.recipe import DistillRecipe
from blockkd.distiller import Distiller
from blockkd.models.weights import WeightsMatch, best_fit, compare_weights, read_state_dict
from blockkd.partitioning import cut_pair, survey
from blockkd.report import TEACHER_NAME, print_table
from blockkd.runs import RunFolder

DESCRIPTION = (
    "Show how the teacher and the student of a recipe are cut, the shapes at the cuts, the connectors, and what the "
    "recipe's method costs, with Block-KD each stone; and what of --teacher.weights fits. Nothing is trained or "
    f"written. Without --config this shows the recipe {DEFAULT_RECIPE}."
)


@dataclass(frozen=True)
class Setup:
    """A recipe, built.

    Attributes:
        method: what the recipe's method is called.
        teacher: the teacher.
        distiller: the method, with student and teacher.
        example: a batch of inputs ``(B, ...)``.
        labels: of the example, ``(B,)``.
        kd_flops: FLOPs per image of a training step of plain KD with these networks.
        sample: what one example is called, with its length where it has one.
    """

    method: str
    teacher: nn.Module
    distiller: Distiller
    example: Inputs
    labels: Tensor
    kd_flops: int
    sample: str


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code.

    Raises:
        InvalidInputError: the recipe cannot be used; or, when all else has been shown, the weights do not fit.
    """
    parser = _parser()
    chosen = any(argument == "--config" or argument.startswith("--config=") for argument in argv)
    config = parse(parser, argv if chosen else [f"--config={DEFAULT_RECIPE}", *argv])
    recipe = Invocation(parser, config, RunFolder(".")).recipe(DistillRecipe)
    weights = recipe.teacher.weights
    with user_input("cannot use the teacher's weights"):
        state = None if weights is None else read_state_dict(weights)
    with quiet():
        setup = _setup(recipe, next(iter(all_methods(recipe, config))))
        _show_blocks(setup)
        print_table(stones_table(setup) if isinstance(setup.distiller, BlockKD) else step_table(setup))
    if weights is not None and state is not None:
        _show_weights(Path(weights), state, setup.teacher)
    return 0


def blocks_table(setup: Setup, teacher: Blocks, student: Blocks) -> Table:
    """Both networks block by block: where each ends, the shape there (without the batch), parameters, FLOPs."""
    is_cut = isinstance(setup.distiller, BlockwiseDistiller)
    table = _networks_table(setup, "blocks" if is_cut else f"blocks as they could be cut; {setup.method} needs none")
    if setup.distiller.student is not student.network:
        table.caption = f"{table.caption}; the whole student is what {setup.method} makes of it to be deployed"
    halves = [_block_rows(blocks, setup.example) for blocks in (teacher, student)]
    labels = [*(f"block {i}" for i in range(1, len(teacher) + 1)), "classifier"]
    for label, theirs, ours in zip(labels, *halves, strict=True):
        table.add_row(label, *theirs, *ours, end_section=label == labels[-1])
    table.add_row("whole", *_whole(setup.teacher, setup.example), *_whole(setup.distiller.student, setup.example))
    return table


def sizes_table(setup: Setup) -> Table:
    """Both networks as wholes, where they cannot be cut."""
    table = _networks_table(setup, "networks")
    table.add_row("whole", *_whole(setup.teacher, setup.example), *_whole(setup.distiller.student, setup.example))
    return table


def stones_table(setup: Setup) -> Table:
    """Each stone: connector, its parameters, and the FLOPs that it adds to a training step of plain KD."""
    distiller = setup.distiller
    assert isinstance(distiller, BlockKD)
    added_to = f"one training step, for one {setup.sample}; plain KD takes {setup.kd_flops:,}"
    table = Table(title="stones", caption=f"FLOPs that a stone adds to {added_to}")
    table.add_column("stone")
    table.add_column("student feature → teacher feature")
    table.add_column("connector")
    for column in ("parameters", "added FLOPs", "of plain KD"):
        table.add_column(column, justify="right")
    theirs, ours = distiller.teacher_blocks.shapes, distiller.student_blocks.shapes
    for stone in distiller.stones:
        connector = distiller.connectors[str(stone)]
        added = _stone_flops(distiller, stone, setup.example)
        table.add_row(
            f"N_{stone}",
            f"{_shape(ours[stone - 1])} → {_shape(theirs[stone - 1])}",
            type(connector).__name__,
            f"{costs.parameters(connector):,}",
            f"{added:,}",
            f"{added / setup.kd_flops:+.0%}",
        )
    return table


def step_table(setup: Setup) -> Table:
    """What a training step of the method takes, and the parameters that are trained beside the deployed student's."""
    table = Table(title="method", caption=f"FLOPs of one training step in the first epoch, for one {setup.sample}")
    table.add_column("method")
    for column in ("parameters beside the student", "FLOPs", "of plain KD"):
        table.add_column(column, justify="right")
    deployed = {id(parameter) for parameter in setup.distiller.student.parameters()}
    beside = sum(p.numel() for p in setup.distiller.parameters() if id(p) not in deployed and p.requires_grad)
    with user_input(f"{setup.method} cannot take a step"):
        flops = _step_flops(setup.distiller, setup.example, setup.labels)
    table.add_row(setup.method, f"{beside:,}", f"{flops:,}", f"{flops / setup.kd_flops:.0%}")
    return table


def weights_table(path: Path, match: WeightsMatch) -> Table:
    """Every tensor by which the file differs from the teacher."""
    title = f"weights: {len(match.fitting)} tensors of {path} fit the teacher, these do not"
    table = Table(title=escape(title))
    table.add_column("tensor", overflow="fold")
    table.add_column("")
    for names, trouble in (
        (match.missing, "missing from the file"),
        (match.unexpected, "not in the teacher"),
        (match.reshaped, "of another shape or kind"),
    ):
        for name in names:
            table.add_row(escape(printable(name)), trouble)
    return table


def _parser() -> ArgumentParser:
    return recipe_parser("inspect", DistillRecipe, DESCRIPTION)


def _setup(recipe: DistillRecipe, method: str) -> Setup:
    with user_input("cannot use the data"):
        example = recipe.data.example()
        labels = recipe.data.parts.test.labels[: count(example)]
    teacher = build_network(recipe.teacher.network, TEACHER_NAME)
    with user_input("the teacher does not fit the data"):
        recipe.data.check_networks(teacher)
    student = build_student(recipe, teacher)
    with user_input("teacher, student and data do not fit together"):
        recipe.data.check_networks(teacher, student)
    pair = copy.deepcopy((teacher, student))
    check_classes({TEACHER_NAME: teacher, "student": student}, recipe.data, example)
    distiller = build_method(recipe.method, method, teacher, student, recipe.data)
    # With networks of its own: a method may freeze a part of the student.
    kd_flops = _step_flops(KD(*pair), example, labels)
    length = "" if isinstance(example, Tensor) else f" of {example['input_ids'].shape[1]} tokens"
    return Setup(method, teacher, distiller, example, labels, kd_flops, f"{recipe.data.sample}{length}")


def _show_blocks(setup: Setup) -> None:
    if isinstance(setup.distiller, BlockwiseDistiller):
        print_table(blocks_table(setup, setup.distiller.teacher_blocks, setup.distiller.student_blocks))
        return
    try:
        theirs, ours = (survey(network, setup.example) for network in (setup.teacher, setup.distiller.student))
        pair = cut_pair(theirs, ours)
        print_table(blocks_table(setup, theirs.cut(pair[0], frozen=True), ours.cut(pair[1])))
    except PartitionError as error:
        print_table(sizes_table(setup))
        print(f"Methods that need blocks cannot be used with these networks: {error}")


def _show_weights(path: Path, state: dict[str, Tensor], teacher: nn.Module) -> None:
    match = compare_weights(teacher, state)
    if match.fits:
        print(f"weights: all {len(state)} tensors of {path} fit the teacher.")
        return
    print_table(weights_table(path, match))
    raise InvalidInputError(
        f"{path} does not fit the teacher: {len(match.missing)} tensors are missing from the file, "
        f"{len(match.unexpected)} are unexpected, {len(match.reshaped)} of another shape or kind. {best_fit(state)}"
    )


def _networks_table(setup: Setup, title: str) -> Table:
    caption = f"FLOPs of a forward pass for one {setup.sample}, a multiply-add counted as two"
    table = Table(title=title, caption=caption)
    table.add_column("")
    for network in (TEACHER_NAME, "student"):
        table.add_column(f"{network}: up to")
        for column in ("shape", "parameters", "FLOPs"):
            table.add_column(column, justify="right")
    return table


def _block_rows(blocks: Blocks, example: Inputs) -> list[tuple[str, str, str, str]]:
    rows = []
    inputs: Any = example
    shapes = [*map(_shape, blocks.shapes), "logits"]
    with torch.no_grad():
        beside = blocks.beside(example)
        for part, name, shape in zip([*blocks.blocks, blocks.classifier], [*blocks.names, "end"], shapes, strict=True):
            rows.append((name, shape, f"{costs.parameters(part):,}", f"{costs.flops(part, inputs, **beside):,}"))
            inputs = part(inputs, **beside)
    return rows


def _whole(network: nn.Module, example: Inputs) -> tuple[str, str, str, str]:
    return "", "", f"{costs.parameters(network):,}", f"{costs.flops(network, example):,}"


def _stone_flops(distiller: BlockKD, stone: int, example: Inputs) -> int:
    """Connector three times (forward, gradient of input and of weights), the frozen tail twice."""
    teacher, student = distiller.teacher_blocks, distiller.student_blocks
    with torch.no_grad():
        features, _ = student.run(example)
        beside = teacher.beside(example)
    feature = features[stone - 1].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        tail = distiller.connectors[str(stone)](feature)
        for block in teacher.blocks[stone:]:
            tail = block(tail, **beside)
        teacher.classifier(tail, **beside).sum().backward()
    return int(counter.get_total_flops()) // count(example)


def _step_flops(distiller: Distiller, example: Inputs, labels: Tensor) -> int:
    context = {"indices": torch.arange(len(labels))} if distiller.needs_indices else {}
    return costs.step_flops(distiller, example, labels, **context) // len(labels)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
