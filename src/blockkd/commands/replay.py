"""``blockkd replay``: take the step again in which numbers stopped being finite, and show where they did."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser
from rich.table import Table
from torch import nn

from blockkd.baselines.logits import CrossEntropy
from blockkd.commands.checks import build_network
from blockkd.commands.composing import read_recipe
from blockkd.commands.distill import all_methods
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.fitting import cpu_threads, make_trainer, quiet
from blockkd.commands.helptext import HelpFormatter
from blockkd.commands.invocation import Invocation
from blockkd.commands.jobs import set_up
from blockkd.commands.machine import Document, add_json_option
from blockkd.commands.next_steps import Steps, command, say_next
from blockkd.commands.parsing import explain, parse, recipe_parser
from blockkd.commands.recipe import DistillRecipe, MethodFactory, TeachRecipe
from blockkd.commands.stored import check_stored
from blockkd.distiller import Distiller
from blockkd.divergence import Diagnosis, Step, diagnose
from blockkd.export import load_student
from blockkd.replaying import load_step
from blockkd.report import TEACHER_NAME, print_table
from blockkd.runs import DIVERGED, RECIPE, TEACHER, Job, RunFolder

DESCRIPTION = (
    "Take the training step again that ended a job because a number was no longer finite: the same batch, weights and "
    f"random numbers, which the job has kept as {DIVERGED}. Shows every loss term, the first module whose output is "
    "not finite, and what else is not. Nothing is trained or written."
)


def run(argv: Sequence[str]) -> Document:
    """Run the command; returns what ``--json`` prints."""
    path = _step_file(_parse(argv))
    root, job = path.parents[2], Job(path.parents[1].name, _seed(path))
    recipe, methods = _recipe(root, job)
    with quiet(), cpu_threads(recipe.threads):
        distiller = _distiller(root, job, recipe, methods)
        with user_input():
            step, said = load_step(path, distiller)
        found = _again(distiller, step, recipe)
    print(f"{job}, epoch {step.epoch}, step {step.number}. Then it was said: {said}")
    print_table(_table(step, found))
    print("Taken again, everything is finite." if found.finite else f"Taken again: {found}.")
    steps: Steps = {} if found.finite else _next(root, job)
    say_next(steps)
    names = ("modules", "gradients", "weights")
    return {
        **{"method": job.method, "seed": job.seed, "epoch": step.epoch, "step": step.number, "said": said},
        **{"finite": found.finite, "terms": found.again, "inputs_finite": found.inputs, "next": list(steps)},
        **{name: getattr(found, name) for name in names},
    }


def _next(root: Path, job: Job) -> Steps:
    root = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
    own = root / job.method / RECIPE
    recipe = own if own.is_file() else root / RECIPE
    option = "--teacher.optimizer.lr" if job.method == TEACHER_NAME else "--optimizer.lr"
    line = command("distill", "--config", recipe, option, "LOWER", "--output", f"{root}-again")
    return {line: "a lower learning rate is the usual mend"}


def replay_parser() -> ArgumentParser:
    """The options of ``replay``."""
    parser = ArgumentParser(
        prog="blockkd replay",
        description=DESCRIPTION,
        exit_on_error=False,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add_json_option(parser)
    parser.add_argument("path", type=Path, metavar="RUN_OR_FILE", help=f"folder of a run, or a {DIVERGED} in it")
    return parser


def _parse(argv: Sequence[str]) -> Path:
    parser = replay_parser()
    try:
        return Path(parser.parse_args(list(argv))["path"])
    except ArgumentError as error:
        raise InvalidInputError(explain(parser, str(error))) from error


def _step_file(path: Path) -> Path:
    """The file that is meant; of a folder, the only one in it."""
    if path.is_file():
        return path.absolute()
    found = sorted(path.glob(f"*/seed_*/{DIVERGED}")) or sorted(path.glob(DIVERGED))
    if len(found) == 1:
        return found[0].absolute()
    if not found:
        raise InvalidInputError(f"{path} holds no step to replay: no {DIVERGED} is in it, so no loss diverged there")
    raise InvalidInputError(f"{path} holds {len(found)} steps; name one: {', '.join(str(file) for file in found)}")


def _seed(path: Path) -> int:
    number = path.parent.name.removeprefix("seed_")
    if not number.isdecimal():
        raise InvalidInputError(f"{path} does not lie in a run: expected RUN/METHOD/seed_NUMBER/{DIVERGED}")
    return int(number)


def _recipe(root: Path, job: Job) -> tuple[TeachRecipe, dict[str, MethodFactory]]:
    """The job's recipe, and the methods in it by name."""
    own = root / job.method / RECIPE  # of a line of a comparison
    path = own if own.is_file() else root / RECIPE
    with user_input():
        check_stored(RunFolder.open(path.parent))
    kind = DistillRecipe if "student" in read_recipe(path) else TeachRecipe
    parser = recipe_parser("replay", kind, DESCRIPTION)
    config = parse(parser, [f"--config={path}"])
    recipe = Invocation(parser, config, RunFolder(root)).recipe(kind)
    if not isinstance(recipe, DistillRecipe):
        return recipe, {}
    return recipe, {job.method: recipe.method} if path == own else all_methods(recipe, config)


def _distiller(root: Path, job: Job, recipe: TeachRecipe, methods: dict[str, MethodFactory]) -> Distiller:
    teacher: nn.Module = build_network(recipe.teacher.network, TEACHER_NAME)
    if job.method == TEACHER_NAME:
        return CrossEntropy(None, teacher)
    if not isinstance(recipe, DistillRecipe) or job.method not in methods:
        raise InvalidInputError(f"the recipe of {root} has no method {job.method!r}, but {', '.join(methods)}")
    with user_input("cannot use the run's teacher"):
        load_student(teacher, root / TEACHER)
    return set_up(job, methods[job.method], recipe, teacher)


def _again(distiller: Distiller, step: Step, recipe: TeachRecipe) -> Diagnosis:
    trainer = make_trainer(recipe.trainer)
    device = trainer.strategy.root_device
    moved = step.on(device)
    distiller.to(device).train()
    if recipe.channels_last:
        distiller.to(memory_format=torch.channels_last)
    with trainer.precision_plugin.train_step_context():
        return diagnose(distiller, moved)


def _table(step: Step, found: Diagnosis) -> Table:
    table = Table()
    table.add_column("loss term")
    for title in ("then", "again"):
        table.add_column(title, justify="right")
    for name, value in found.again.items():
        then = float(step.terms[name]) if name in step.terms else math.nan
        table.add_row(name, f"{then:.6g}", f"{value:.6g}")
    return table
