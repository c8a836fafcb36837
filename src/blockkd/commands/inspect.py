"""``blockkd inspect``: how a recipe's networks are cut and connected, what its method costs, whether weights fit."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

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
from blockkd.commands.machine import Document
from blockkd.commands.next_steps import command, say_next
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


def run(argv: Sequence[str]) -> Document:
    """Run the command; returns what ``--json`` prints.

    Raises:
        InvalidInputError: the recipe cannot be used; or, when all else has been shown, the weights do not fit.
    """
    parser = inspect_parser()
    chosen = any(argument == "--config" or argument.startswith("--config=") for argument in argv)
    config = parse(parser, argv if chosen else [f"--config={DEFAULT_RECIPE}", *argv])
    recipe = Invocation(parser, config, RunFolder(".")).recipe(DistillRecipe)
    weights = recipe.teacher.weights
    with user_input("cannot use the teacher's weights"):
        state = None if weights is None else read_state_dict(weights)
    with quiet():
        setup = _setup(recipe, next(iter(all_methods(recipe, config))))
        networks, stones, step = _networks(setup), _stones(setup), _step(setup)
    print_table(networks_table(setup, networks))
    if "cannot_be_cut" in networks:
        print(f"Methods that need blocks cannot be used with these networks: {networks['cannot_be_cut']}")
    print_table(step_table(setup, step) if stones is None else stones_table(setup, stones))
    if weights is not None and state is not None:
        _show_weights(Path(weights), state, setup.teacher)
    steps = {command("distill", *argv): "train it"}
    say_next(steps)
    return {"method": setup.method, "networks": networks, "stones": stones, "step": step, "next": list(steps)}


def _networks(setup: Setup) -> Document:
    """Both networks, block by block where they can be cut; FLOPs are of a forward pass for one example."""
    found: dict[str, Any] = {}
    halves: Sequence[Blocks | None] = (None, None)
    try:
        halves = _blocks(setup)
    except PartitionError as error:
        found["cannot_be_cut"] = str(error)
    networks = {TEACHER_NAME: setup.teacher, "student": setup.distiller.student}
    for (role, network), blocks in zip(networks.items(), halves, strict=True):
        found[role] = {
            "parameters": costs.parameters(network),
            "flops": costs.flops(network, setup.example),
            "blocks": None if blocks is None else _block_rows(blocks, setup.example),
        }
    ours = halves[1]
    found["deployed_by_method"] = ours is not None and setup.distiller.student is not ours.network
    return found


def _blocks(setup: Setup) -> tuple[Blocks, Blocks]:
    """As the method cuts, or as one would that needs blocks."""
    if isinstance(setup.distiller, BlockwiseDistiller):
        return setup.distiller.teacher_blocks, setup.distiller.student_blocks
    theirs, ours = (survey(network, setup.example) for network in (setup.teacher, setup.distiller.student))
    pair = cut_pair(theirs, ours)
    return theirs.cut(pair[0], frozen=True), ours.cut(pair[1])


def _stones(setup: Setup) -> list[dict[str, Any]] | None:
    """Each stone: connector, its parameters, and the FLOPs that it adds to a training step for one example."""
    distiller = setup.distiller
    if not isinstance(distiller, BlockKD):
        return None
    theirs, ours = distiller.teacher_blocks.shapes, distiller.student_blocks.shapes
    return [
        {
            "stone": stone,
            "student_shape": ours[stone - 1],
            "teacher_shape": theirs[stone - 1],
            "connector": type(distiller.connectors[str(stone)]).__name__,
            "parameters": costs.parameters(distiller.connectors[str(stone)]),
            "added_flops": costs.stone_flops(distiller, stone, setup.example),
        }
        for stone in distiller.stones
    ]


def _step(setup: Setup) -> Document:
    """FLOPs of a training step for one example, and the parameters that are trained beside the deployed student's."""
    deployed = {id(parameter) for parameter in setup.distiller.student.parameters()}
    beside = sum(p.numel() for p in setup.distiller.parameters() if id(p) not in deployed and p.requires_grad)
    with user_input(f"{setup.method} cannot take a step"):
        flops = _step_flops(setup.distiller, setup.example, setup.labels)
    return {"parameters_beside_student": beside, "flops": flops, "kd_flops": setup.kd_flops}


def networks_table(setup: Setup, networks: Document) -> Table:
    """Both networks block by block: where each ends, the shape there (without the batch), parameters, FLOPs."""
    halves = [networks[role]["blocks"] for role in (TEACHER_NAME, "student")]
    is_cut = isinstance(setup.distiller, BlockwiseDistiller)
    title = "blocks" if is_cut else f"blocks as they could be cut; {setup.method} needs none"
    caption = f"FLOPs of a forward pass for one {setup.sample}, a multiply-add counted as two"
    if networks["deployed_by_method"]:
        caption = f"{caption}; the whole student is what {setup.method} makes of it to be deployed"
    table = Table(title="networks" if halves[0] is None else title, caption=caption)
    table.add_column("")
    for network in (TEACHER_NAME, "student"):
        table.add_column(f"{network}: up to")
        for column in ("shape", "parameters", "FLOPs"):
            table.add_column(column, justify="right")
    if halves[0] is not None:
        labels = [*(f"block {i}" for i in range(1, len(halves[0]))), "classifier"]
        for label, *pair in zip(labels, *halves, strict=True):
            cells = [cell for block in pair for cell in _block_cells(block)]
            table.add_row(label, *cells, end_section=label == labels[-1])
    wholes = [networks[role] for role in (TEACHER_NAME, "student")]
    table.add_row("whole", *(c for whole in wholes for c in ("", "", *_counts(whole))))
    return table


def stones_table(setup: Setup, stones: Sequence[Mapping[str, Any]]) -> Table:
    """One row per stone."""
    added_to = f"one training step, for one {setup.sample}; plain KD takes {setup.kd_flops:,}"
    table = Table(title="stones", caption=f"FLOPs that a stone adds to {added_to}")
    table.add_column("stone")
    table.add_column("student feature → teacher feature")
    table.add_column("connector")
    for column in ("parameters", "added FLOPs", "of plain KD"):
        table.add_column(column, justify="right")
    for row in stones:
        table.add_row(
            f"N_{row['stone']}",
            f"{_shape(row['student_shape'])} → {_shape(row['teacher_shape'])}",
            row["connector"],
            f"{row['parameters']:,}",
            f"{row['added_flops']:,}",
            f"{row['added_flops'] / setup.kd_flops:+.0%}",
        )
    return table


def step_table(setup: Setup, step: Document) -> Table:
    """What a training step of the method takes."""
    table = Table(title="method", caption=f"FLOPs of one training step in the first epoch, for one {setup.sample}")
    table.add_column("method")
    for column in ("parameters beside the student", "FLOPs", "of plain KD"):
        table.add_column(column, justify="right")
    flops = step["flops"]
    beside, share = step["parameters_beside_student"], flops / setup.kd_flops
    table.add_row(setup.method, f"{beside:,}", f"{flops:,}", f"{share:.0%}")
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


def inspect_parser() -> ArgumentParser:
    """The options of ``inspect``."""
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


def _block_rows(blocks: Blocks, example: Inputs) -> list[dict[str, Any]]:
    """Every block and the classifier: where it ends, and its shape there, which of logits is not known before."""
    ends = zip([*blocks.names, None], [*blocks.shapes, None], costs.block_costs(blocks, example), strict=True)
    return [
        {"up_to": name, "shape": shape, "parameters": parameters, "flops": flops}
        for name, shape, (parameters, flops) in ends
    ]


def _block_cells(block: Mapping[str, Any]) -> tuple[str, ...]:
    shape = "logits" if block["shape"] is None else _shape(block["shape"])
    return block["up_to"] or "end", shape, *_counts(block)


def _counts(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"{row['parameters']:,}", f"{row['flops']:,}"


def _step_flops(distiller: Distiller, example: Inputs, labels: Tensor) -> int:
    context = {"indices": torch.arange(len(labels))} if distiller.needs_indices else {}
    return costs.step_flops(distiller, example, labels, **context) // len(labels)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
