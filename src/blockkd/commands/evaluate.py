"""``blockkd evaluate RUN``: test accuracy of what a run folder holds, measured again from its weights."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from blockkd import costs
from blockkd.baselines.logits import CrossEntropy
from blockkd.commands.checks import build_network, check_classes
from blockkd.commands.distill import distill_parser
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.fitting import accuracy, cpu_threads, quiet
from blockkd.commands.helptext import HelpFormatter
from blockkd.commands.invocation import Invocation
from blockkd.commands.parsing import parse
from blockkd.commands.recipe import DistillRecipe, TeachRecipe
from blockkd.commands.teach import teach_parser
from blockkd.export import load_student
from blockkd.report import TEACHER_NAME, evaluation_table, print_table
from blockkd.runs import RECIPE, STUDENT, TEACHER, Row, RunFolder
from blockkd.training import DistillationModule


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(_parser(), argv)
    with user_input():
        folder = RunFolder.open(options["run"])
    invocation = _stored(folder)
    recipe = invocation.recipe(DistillRecipe if "student" in invocation.config else TeachRecipe)
    with quiet(), cpu_threads(recipe.threads):
        rows = [
            _evaluate(role, network, path, recipe, options["part"]) for role, network, path in _networks(recipe, folder)
        ]
    images = len(recipe.data.parts.val if options["part"] == "val" else recipe.data.parts.test)
    print_table(evaluation_table(rows, options["part"], images))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="blockkd evaluate",
        description="Measure the accuracy of a run's student and teacher from their weights.",
        exit_on_error=False,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=str, metavar="RUN", help="folder of a run, such as runs/digits/block_kd")
    parser.add_argument("--part", choices=("test", "val"), default="test", help="part of the data")
    return parser


def _stored(folder: RunFolder) -> Invocation:
    path = folder.path / RECIPE
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    parser = distill_parser() if isinstance(content, dict) and "student" in content else teach_parser()
    config: Namespace = parse(parser, [f"--config={path}"])
    return Invocation(parser, config, folder)


def _networks(recipe: TeachRecipe, folder: RunFolder) -> list[tuple[str, nn.Module, Path]]:
    networks = [(TEACHER_NAME, build_network(recipe.teacher.network, "teacher"), folder.path / TEACHER)]
    if isinstance(recipe, DistillRecipe):
        networks.append(("student", build_network(recipe.student, "student"), folder.path / STUDENT))
    missing = [path.name for _, _, path in networks if not path.is_file()]
    if missing:
        raise InvalidInputError(
            f"{folder.path} has no {' and no '.join(missing)}: the run is unfinished; "
            f"go on with blockkd distill --resume {folder.path}"
        )
    return networks


def _evaluate(role: str, network: nn.Module, path: Path, recipe: TeachRecipe, part: str) -> Row:
    with user_input(f"cannot use the {role}'s weights"):
        load_student(network, path)
    example = recipe.data.example()
    check_classes({role: network}, recipe.data, example)
    module = DistillationModule(CrossEntropy(None, network), recipe.teacher.optimizer)
    return {
        "network": role,
        "accuracy": accuracy(module, recipe.data, part, recipe.trainer),
        "parameters": costs.parameters(network),
        "flops_per_image": costs.flops(network, example),
    }
