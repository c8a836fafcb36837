"""``blockkd teach``: a teacher by itself."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from blockkd.commands.checks import check_teaching
from blockkd.commands.distill import report, run_document
from blockkd.commands.fitting import cpu_threads, quiet
from blockkd.commands.invocation import add_folder_options, read_invocation
from blockkd.commands.jobs import Workplace, run_teacher
from blockkd.commands.machine import Document
from blockkd.commands.next_steps import after_teaching, say_next
from blockkd.commands.parsing import recipe_parser
from blockkd.commands.progress import progress_lines
from blockkd.commands.recipe import TeachRecipe
from blockkd.commands.slices import Deadline
from blockkd.commands.together import console, is_first, together
from blockkd.report import TEACHER_NAME
from blockkd.runs import TEACHER, Job

DEFAULT_RECIPE = "digits/teacher"
DESCRIPTION = (
    f"Train a teacher by itself. Without --config this runs the recipe {DEFAULT_RECIPE}. Distil from it with "
    f"blockkd distill --teacher.weights RUN/{TEACHER}."
)


def run(argv: Sequence[str]) -> Document | None:
    """Run the command; returns what ``--json`` prints, or None in a process that only trains along."""
    invocation = read_invocation(teach_parser(), argv, DEFAULT_RECIPE)
    recipe = invocation.recipe(TeachRecipe)
    with quiet(), cpu_threads(recipe.threads):
        loaded = check_teaching(recipe)
        invocation.start()
        with together(recipe.trainer), invocation.resumable(), progress_lines(console()) as progress:
            run_teacher(recipe, loaded, Workplace(invocation.folder, progress, Deadline()))
    if not is_first():
        return None
    jobs, path = [Job(TEACHER_NAME, int(recipe.seed))], invocation.folder.path
    report(invocation.folder, jobs, recipe.data)
    print(f"\nThe run lies in {path}.")
    steps = after_teaching(path)
    say_next(steps)
    return run_document(invocation.folder, jobs, steps)


def teach_parser() -> ArgumentParser:
    """The options of ``teach``."""
    parser = recipe_parser("teach", TeachRecipe, DESCRIPTION)
    add_folder_options(parser, "runs/<name of the recipe>")
    return parser
