"""What a command says last: the commands that come next, ready to be copied."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from blockkd.runs import TEACHER, TEACHER_FOLDER, Job

Steps = Mapping[str, str]  # command → what it is for


def command(name: str, *words: str | Path) -> str:
    """``blockkd NAME ...`` as a shell takes it."""
    return shlex.join(["blockkd", name, *map(str, words)])


def after_teaching(run: Path) -> Steps:
    """What to do with a run's teacher; a text classifier lies there as a folder."""
    folder = run / TEACHER_FOLDER
    option = ("--teacher.name", folder) if folder.is_dir() else ("--teacher.weights", run / TEACHER)
    return {command("distill", *option): "a student of this teacher"}


def after_distilling(run: Path) -> Steps:
    """What to do with a run's student."""
    return {
        command("report", run): "one page about the run",
        command("export", run): "the student alone, ready to be used",
    }


def after_comparing(run: Path, job: Job) -> Steps:
    """What to do with a finished comparison, of which this is one of the jobs."""
    return {
        command("report", run): "one page about the comparison",
        command("export", run, "--method", job.method): "one of its students, ready to be used",
    }


def say_next(steps: Steps) -> None:
    """Print them, one a line, the command at its end."""
    said = [f"{'Or' if number else 'Next'}, {why}:" for number, why in enumerate(steps.values())]
    width = max(map(len, said), default=0)
    for why, line in zip(said, steps, strict=True):
        print(f"{why:<{width}} {line}")
