"""``blockkd distill``: a teacher, then students under the recipe's methods, side by side."""

import time
import warnings
from collections.abc import Mapping, Sequence

from jsonargparse import ArgumentParser, Namespace

from blockkd.block_kd import BlockKD
from blockkd.commands.checks import check_distilling, method_class
from blockkd.commands.errors import InvalidInputError
from blockkd.commands.fitting import cpu_threads, quiet
from blockkd.commands.forecast import Forecast
from blockkd.commands.invocation import Invocation, add_folder_options, read_invocation
from blockkd.commands.jobs import Workplace, publish, run_student, run_teacher, student_jobs
from blockkd.commands.machine import Document
from blockkd.commands.next_steps import Steps, after_distilling, say_next
from blockkd.commands.parsing import recipe_parser
from blockkd.commands.preflight import epoch_seconds, preflight
from blockkd.commands.progress import progress_lines
from blockkd.commands.recipe import DistillRecipe, MethodFactory, method_name
from blockkd.commands.slices import Deadline
from blockkd.commands.together import console, is_first, together
from blockkd.data.images import ImageData
from blockkd.report import TEACHER_NAME, figure, print_table, results_table
from blockkd.runs import FIGURE, Job, Row, RunFolder

DEFAULT_RECIPE = "digits/block_kd"
DESCRIPTION = (
    f"Distil a student from a teacher. Without --config this runs the recipe {DEFAULT_RECIPE}, which needs no "
    "download. Every setting can be given on the line, for example: --epochs 10 --method.alpha 0.5 --seeds 3."
)


def run(argv: Sequence[str]) -> Document | None:
    """Run the command; returns what ``--json`` prints, or None in a process that only trains along."""
    started = time.perf_counter()
    invocation = read_invocation(distill_parser(), argv, DEFAULT_RECIPE, strict=True)
    recipe = invocation.recipe(DistillRecipe)
    methods = all_methods(recipe, invocation.config)
    with quiet(), cpu_threads(recipe.threads):
        jobs = train(recipe, methods, invocation)
    if not is_first():
        return None
    report(invocation.folder, jobs, recipe.data)
    path = invocation.folder.path
    print(f"\n{time.perf_counter() - started:.0f} s in all. The run lies in {path}: curves in {FIGURE}.")
    steps = after_distilling(path)
    say_next(steps)
    return run_document(invocation.folder, jobs, steps)


def distill_parser() -> ArgumentParser:
    """The options of ``distill``."""
    parser = recipe_parser("distill", DistillRecipe, DESCRIPTION)
    add_folder_options(parser, "runs/<name of the recipe>", strict=True)
    return parser


def all_methods(recipe: DistillRecipe, config: Namespace) -> dict[str, MethodFactory]:
    """The recipe's method under its own name, then those beside it."""
    name = method_name(config["method"]["class_path"])
    beside = recipe.beside or {}  # a recipe may say null
    if name in beside:
        raise InvalidInputError(f"two methods are called {name!r}; give the one under 'beside' another name")
    return {name: recipe.method, **beside}


def train(recipe: DistillRecipe, methods: Mapping[str, MethodFactory], invocation: Invocation) -> list[Job]:
    """Check everything, make the folder, train what is not yet trained; returns all jobs, the teacher's first."""
    new = not invocation.resumed and not invocation.follows
    if recipe.watch_stones and not any(issubclass(method_class(factory), BlockKD) for factory in methods.values()):
        warnings.warn(f"watch_stones has no effect: {' and '.join(methods)} has no stones", stacklevel=2)
    checked = check_distilling(recipe, methods, tried=new)
    if new:
        known = checked.teacher if recipe.teacher.is_trained else None
        preflight(recipe, checked.trials, known, invocation.folder.path, invocation.strict)
    invocation.start()
    folder, students = invocation.folder, student_jobs(recipe, methods)
    own = Job(TEACHER_NAME, int(recipe.seed))
    epochs = {own: recipe.teacher.epochs_to_train} | dict.fromkeys(students, int(recipe.epochs))
    forecast = Forecast(epochs, epoch_seconds(checked.trials, recipe.data))
    with together(recipe.trainer), invocation.resumable(), progress_lines(console()) as progress:
        place = Workplace(folder, progress, Deadline(), invocation.strict, forecast)
        teacher = run_teacher(recipe, checked.teacher, place)
        assert teacher is not None, "there is no deadline"
        for job in students:
            run_student(job, methods[job.method], recipe, teacher, place)
    if is_first() and folder.result(students[0]):
        publish(students[0], folder)
    return [own, *students]


def run_document(folder: RunFolder, jobs: Sequence[Job], steps: Steps) -> Document:
    """What ``--json`` prints of a run: its folder, the rows of its results, and the commands that come next."""
    return {"run": folder.path, "results": results_of(folder, jobs), "next": list(steps)}


def report(folder: RunFolder, jobs: Sequence[Job], data: ImageData) -> None:
    """Write the run's tables and figure, and print the table."""
    folder.gather(jobs)
    results = results_of(folder, jobs)
    figure(folder.metrics(jobs), results, folder.path / FIGURE)
    print_table(results_table(results, len(data.parts.test), data.sample))


def results_of(folder: RunFolder, jobs: Sequence[Job]) -> list[Row]:
    """The rows of the jobs that are finished."""
    return [result for job in jobs if (result := folder.result(job))]
