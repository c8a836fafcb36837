"""``blockkd inspect``: how a recipe's networks are cut and connected, and what each stone costs."""

from collections.abc import Mapping, Sequence

import torch
from jsonargparse import ArgumentParser
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from blockkd import costs
from blockkd.baselines.logits import KD
from blockkd.block_kd import BlockKD
from blockkd.blocks import Blocks
from blockkd.commands.checks import build_method, build_network, check_classes
from blockkd.commands.distill import DEFAULT_RECIPE, all_methods
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.fitting import quiet
from blockkd.commands.invocation import Invocation
from blockkd.commands.parsing import parse, recipe_parser
from blockkd.commands.recipe import DistillRecipe, MethodFactory
from blockkd.distiller import Distiller
from blockkd.report import print_table
from blockkd.runs import RunFolder

DESCRIPTION = (
    "Show how the teacher and the student of a recipe are cut, the shapes at the cuts, the connectors, and what each "
    f"stone costs. Nothing is trained or written. Without --config this shows the recipe {DEFAULT_RECIPE}."
)


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    chosen = any(argument == "--config" or argument.startswith("--config=") for argument in argv)
    config = parse(parser, argv if chosen else [f"--config={DEFAULT_RECIPE}", *argv])
    recipe = Invocation(parser, config, RunFolder(".")).recipe(DistillRecipe)
    with quiet():
        with user_input("cannot use the data"):
            example = recipe.data.example()
        distiller = _distiller(recipe, all_methods(recipe, config), example)
        print_table(blocks_table(distiller, example))
        print_table(stones_table(distiller, example))
    return 0


def blocks_table(distiller: BlockKD, example: Tensor) -> Table:
    """Both networks block by block: where each ends, the shape there (without the batch), parameters, FLOPs."""
    table = Table(title="blocks", caption="FLOPs of a forward pass for one image, a multiply-add counted as two")
    table.add_column("")
    for network in ("teacher", "student"):
        table.add_column(f"{network}: up to")
        for column in ("shape", "parameters", "FLOPs"):
            table.add_column(column, justify="right")
    halves = [_block_rows(blocks, example) for blocks in (distiller.teacher_blocks, distiller.student_blocks)]
    count = len(distiller.teacher_blocks)
    labels = [*(f"block {i}" for i in range(1, count + 1)), "classifier"]
    for label, teacher, student in zip(labels, *halves, strict=True):
        table.add_row(label, *teacher, *student, end_section=label == labels[-1])
    table.add_row("whole", *_whole(distiller.teacher_blocks.network, example), *_whole(distiller.student, example))
    return table


def stones_table(distiller: BlockKD, example: Tensor) -> Table:
    """Each stone: connector, its parameters, and the FLOPs that it adds to a training step of plain KD."""
    base = _step_flops(KD(distiller.teacher_blocks.network, distiller.student), example)
    table = Table(
        title="stones",
        caption=f"FLOPs that a stone adds to one training step, for one image; plain KD takes {base:,}",
    )
    table.add_column("stone")
    table.add_column("student feature → teacher feature")
    table.add_column("connector")
    for column in ("parameters", "added FLOPs", "of plain KD"):
        table.add_column(column, justify="right")
    theirs, ours = distiller.teacher_blocks.shapes, distiller.student_blocks.shapes
    for stone in distiller.stones:
        connector = distiller.connectors[str(stone)]
        added = _stone_flops(distiller, stone, example)
        table.add_row(
            f"N_{stone}",
            f"{_shape(ours[stone - 1])} → {_shape(theirs[stone - 1])}",
            type(connector).__name__,
            f"{costs.parameters(connector):,}",
            f"{added:,}",
            f"{added / base:+.0%}",
        )
    return table


def _parser() -> ArgumentParser:
    return recipe_parser("inspect", DistillRecipe, DESCRIPTION)


def _distiller(recipe: DistillRecipe, methods: Mapping[str, MethodFactory], example: Tensor) -> BlockKD:
    teacher = build_network(recipe.teacher.network, "teacher")
    student = build_network(recipe.student, "student")
    check_classes({"teacher": teacher, "student": student}, recipe.data, example)
    name = next(iter(methods))
    distiller = build_method(recipe.method, name, teacher, student, example)
    if not isinstance(distiller, BlockKD):
        raise InvalidInputError(f"inspect shows the stones of Block-KD, and {name} has none; add --method BlockKD")
    return distiller


def _block_rows(blocks: Blocks, example: Tensor) -> list[tuple[str, str, str, str]]:
    rows = []
    inputs = example
    shapes = [*map(_shape, blocks.shapes), "logits"]
    with torch.no_grad():
        for part, name, shape in zip([*blocks.blocks, blocks.classifier], [*blocks.names, "end"], shapes, strict=True):
            rows.append((name, shape, f"{costs.parameters(part):,}", f"{costs.flops(part, inputs):,}"))
            inputs = part(inputs)
    return rows


def _whole(network: nn.Module, example: Tensor) -> tuple[str, str, str, str]:
    return "", "", f"{costs.parameters(network):,}", f"{costs.flops(network, example):,}"


def _stone_flops(distiller: BlockKD, stone: int, example: Tensor) -> int:
    """Connector three times (forward, gradient of input and of weights), the frozen tail twice."""
    teacher, student = distiller.teacher_blocks, distiller.student_blocks
    with torch.no_grad():
        features, _ = student.run(example)
    feature = features[stone - 1].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        tail = distiller.connectors[str(stone)](feature)
        for block in teacher.blocks[stone:]:
            tail = block(tail)
        teacher.classifier(tail).sum().backward()
    return int(counter.get_total_flops()) // len(example)


def _step_flops(distiller: Distiller, example: Tensor) -> int:
    labels = torch.zeros(len(example), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        distiller(example, labels).total.backward()
    return int(counter.get_total_flops()) // len(example)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
