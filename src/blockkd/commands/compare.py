"""``blockkd compare``: several recipes over the same teacher, data and seeds, in slices of time if need be."""

import argparse
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from jsonargparse import ArgumentParser
from torch import nn

from blockkd.commands.beside import published_beside
from blockkd.commands.checks import Checked
from blockkd.commands.composing import is_plain
from blockkd.commands.entries import (
    Entry,
    check_entries,
    differing_settings,
    entries_text,
    read_entries,
    store_entries,
    stored_command,
    stored_entries,
)
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.fitting import cpu_threads, make_trainer, quiet
from blockkd.commands.forecast import Forecast
from blockkd.commands.invocation import add_folder_options
from blockkd.commands.jobs import Workplace, run_student, run_teacher
from blockkd.commands.machine import Document
from blockkd.commands.next_steps import Steps, after_comparing, command, say_next
from blockkd.commands.parsing import parse, recipe_parser
from blockkd.commands.preflight import epoch_seconds, preflight
from blockkd.commands.progress import progress_lines
from blockkd.commands.recipe import DistillRecipe
from blockkd.commands.slices import Deadline
from blockkd.commands.together import console, follows, is_first, together
from blockkd.comparison import summarise
from blockkd.comparison_figure import comparison_figure
from blockkd.comparison_tables import comparison_markdown, comparison_rows, comparison_table
from blockkd.divergence import DivergedError
from blockkd.environment import environment
from blockkd.report import TEACHER_NAME, print_table
from blockkd.runs import Job, Row, RunFolder, write_csv, write_text

TABLE, TEXT, FIGURE = "comparison.csv", "comparison.md", "comparison.png"
# How many classes and training images the published numbers of a task belong to.
DESCRIPTION = (
    "Train students by several recipes, or by one recipe and the methods beside it, with the same teacher, data order "
    "and seeds, and put the results side by side. The recipes come first, then options that hold for all of them: "
    "blockkd compare cifar100/resnet56-resnet20/{kd,dkd,block_kd} --seeds 3 --teacher.weights FILE. The folder can be "
    "worked on in slices of time and by several processes at once, also started by hand with --resume."
)


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        parser: of a recipe.
        folder: of the comparison.
        entries: its lines.
        deadline: the end of this slice.
        processes: how many work on it, this one included.
        resumed: whether the folder is there already.
        overwrite: whether a run that is in the folder may be deleted.
        strict: whether a warning before the training stops it.
    """

    parser: ArgumentParser
    folder: RunFolder
    entries: list[Entry]
    deadline: Deadline
    processes: int
    resumed: bool
    overwrite: bool
    strict: bool

    @property
    def shared(self) -> DistillRecipe:
        """A recipe that says what all share: data, teacher, seeds, trainer."""
        return self.entries[0].recipe

    @property
    def jobs(self) -> list[tuple[Job, Entry]]:
        """Every student: all lines of the first seed, then of the next."""
        first, count = int(self.shared.seed), int(self.shared.seeds)
        return [(Job(entry.name, first + number), entry) for number in range(count) for entry in self.entries]


def run(argv: Sequence[str]) -> Document | None:
    """Run the command; returns what ``--json`` prints, or None in a process that only trains along."""
    request = _request(argv)
    command_line = command("compare", *argv)
    with quiet(), cpu_threads(request.shared.threads):
        diverged = None
        try:
            if not all(request.folder.result(job) for job, _ in request.jobs):
                _train(request, command_line)
        except DivergedError as error:
            diverged = error
        if not is_first():
            return None
        document = _report(request)
    if diverged is not None:
        raise diverged
    return document


def compare_parser() -> ArgumentParser:
    """The options of ``compare``."""
    parser = recipe_parser("compare", DistillRecipe, DESCRIPTION, usage="RECIPE... [options]")
    add_folder_options(parser, "runs/compare/<name of the recipes' pair>", strict=True)
    group = parser.add_argument_group("slices of time")
    group.add_argument(
        "--minutes", type=float, help="stop between two epochs before so much time is over; at least one epoch is done"
    )
    group.add_argument("--processes", type=int, help="how many train side by side, on one device (default: 1)")
    return parser


def _request(argv: Sequence[str]) -> Request:
    recipes = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--output")
    own.add_argument("--overwrite", action="store_true")
    own.add_argument("--strict", action="store_true")
    own.add_argument("--resume")
    own.add_argument("--minutes", type=float)
    own.add_argument("--processes", type=int, default=1)
    try:
        given, options = own.parse_known_args(list(argv[len(recipes) :]))
    except argparse.ArgumentError as error:
        raise InvalidInputError(f"{error}") from error
    if given.processes < 1:
        raise InvalidInputError(f"--processes is {given.processes}, expected 1 or more")
    if given.minutes is not None and not given.minutes > 0:
        raise InvalidInputError(f"--minutes is {given.minutes}, expected more than 0")
    parser = compare_parser()
    if given.resume is not None:
        if recipes or given.output or given.overwrite or given.strict:
            raise InvalidInputError("--resume takes the recipes and the folder from the comparison; give it alone")
        with user_input():
            folder = RunFolder.open(given.resume)
        entries = stored_entries(parser, folder, options)
    else:
        if {"-h", "--help"} & set(options):
            parse(parser, ["--help"])
        if not recipes:
            raise InvalidInputError("no recipe is given; for example: blockkd compare digits/block_kd --seeds 3")
        entries = read_entries(parser, recipes, options)
        folder = RunFolder(given.output or Path("runs") / "compare" / _run_name(recipes))
        if not follows(entries[0].recipe.trainer):
            with user_input():
                folder.check_free(given.overwrite)
    deadline = Deadline(given.minutes)
    resumed = given.resume is not None
    return Request(parser, folder, entries, deadline, given.processes, resumed, given.overwrite, given.strict)


def _train(request: Request, command_line: str) -> None:
    folder, options = request.folder, request.shared.trainer
    if request.processes > 1 and make_trainer(options).world_size > 1:
        raise InvalidInputError(
            f"--processes {request.processes} share one device, but the trainer's options ask for several: give "
            "--trainer.devices 1, or leave out --processes"
        )
    first = not follows(options)
    new = first and not request.resumed
    checked = check_entries(request.entries, tried=new)
    if new:
        known = checked.teacher if request.shared.teacher.is_trained else None
        preflight(request.shared, checked.trials, known, folder.path, request.strict)
    if first:
        _prepare(request, command_line)
    helpers = [_helper(request) for _ in range(request.processes - 1)]
    try:
        with together(options), progress_lines(console()) as progress:
            place = Workplace(folder, progress, request.deadline, request.strict, _forecast(request, checked))
            diverged = _work(request, checked.teacher, place)
        codes = [helper.wait() for helper in helpers]
    except (KeyboardInterrupt, OSError) as stop:
        stop.add_note(f"go on with: blockkd compare --resume {folder.path}")
        raise
    finally:
        for helper in helpers:
            helper.terminate()
    if diverged:
        raise DivergedError(f"the loss of {len(diverged)} students is not finite: {'; '.join(diverged)}")
    if any(codes):
        raise DivergedError(f"a process that trained beside this one ended with exit code {max(codes)}; see above")


def _forecast(request: Request, checked: Checked) -> Forecast:
    epochs = {Job(TEACHER_NAME, int(request.shared.seed)): request.shared.teacher.epochs_to_train}
    epochs |= {job: int(entry.recipe.epochs) for job, entry in request.jobs}
    return Forecast(epochs, epoch_seconds(checked.trials, request.shared.data), request.processes)


def _prepare(request: Request, command_line: str) -> None:
    """Put the comparison on disk."""
    folder = request.folder
    with user_input():
        if not request.resumed:
            folder.create(entries_text(request.entries, command_line), request.overwrite)
        store_entries(request.parser, folder, request.entries)


def _work(request: Request, loaded: nn.Module, place: Workplace) -> list[str]:
    """Train what is not yet trained, until time runs out; the students that diverged, which keep no others waiting."""
    diverged: list[str] = []
    teacher = run_teacher(request.shared, loaded, place)
    if teacher is None:
        return diverged
    for job, entry in request.jobs:
        try:
            if not run_student(job, entry.recipe.method, entry.recipe, teacher, place):
                break
        except DivergedError as error:
            warnings.warn(f"{error}", stacklevel=1)
            diverged.append(str(job))
    return diverged


def _helper(request: Request) -> "subprocess.Popen[bytes]":
    """Another process that works on the folder until the same deadline."""
    left = request.deadline.minutes_left()
    slices = [] if left is None else ["--minutes", str(left)]
    command = [sys.executable, "-P", "-m", "blockkd.cli", "compare", "--resume", str(request.folder.path), *slices]
    seeds = ["--seeds", str(int(request.shared.seeds))]
    same_imports = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen([*command, *seeds], stdout=subprocess.DEVNULL, env=same_imports)


def _report(request: Request) -> Document:
    """Write tables and figures of what is finished, print the table, and say what ``--json`` prints."""
    folder, jobs = request.folder, [job for job, _ in request.jobs]
    jobs = [Job(TEACHER_NAME, int(request.shared.seed)), *jobs]
    folder.gather(jobs)
    rows: list[Row] = [result for job in jobs if (result := folder.result(job))]
    finished = [row for row in rows if row["method"] != TEACHER_NAME]
    compared: list[Row] = []
    if finished:
        comparison = summarise(rows, published=published_beside(request.entries))
        data = request.shared.data
        tested = len(data.parts.test)
        compared = comparison_rows(comparison)
        write_csv(folder.path / TABLE, compared)
        footer = {"command": stored_command(folder), **_settings(request), **environment()}
        write_text(folder.path / TEXT, comparison_markdown(comparison, footer, test_images=tested, sample=data.sample))
        comparison_figure(comparison, rows, folder.path / FIGURE)
        print_table(comparison_table(comparison, tested, data.sample))
        _print_settings(request)
    left = len(request.jobs) - len(finished)
    if left:
        print(f"\n{left} of {len(request.jobs)} students are not finished.")
        steps: Steps = {command("compare", "--resume", folder.path): "the rest"}
    else:
        print(f"\nThe comparison lies in {folder.path}: {TABLE}, {TEXT}, {FIGURE}.")
        steps = after_comparing(folder.path, request.jobs[0][0])
    say_next(steps)
    known = [{name: value for name, value in row.items() if value != ""} for row in compared]
    return {"run": folder.path, "unfinished": left, "results": rows, "comparison": known, "next": list(steps)}


def _settings(request: Request) -> dict[str, str]:
    """What a reader must know beside the method: seeds, epochs, and every setting that is not the same for all."""
    settings = differing_settings(request.parser, request.entries)
    said = {
        option: ", ".join(f"{name} {value}" for name, value in by_line.items()) for option, by_line in settings.items()
    }
    return {"seeds": ", ".join(str(seed) for seed in sorted({job.seed for job, _ in request.jobs})), **said}


def _print_settings(request: Request) -> None:
    settings = differing_settings(request.parser, request.entries)
    if settings:
        print(f"\nNot the same for all: {', '.join(settings)} (see {request.folder.path / TEXT}).")


def _run_name(recipes: Sequence[str]) -> str:
    first = recipes[0]
    return Path(first).stem if is_plain(first) else first.rpartition("/")[0].removesuffix(".yaml").removesuffix(".yml")
