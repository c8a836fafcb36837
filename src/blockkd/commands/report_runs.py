"""Reads the runs that are to be reported: recipes, tables and networks, of finished and of unfinished ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from blockkd.block_kd import BlockKD
from blockkd.commands.checks import build_network, method_class
from blockkd.commands.compare import compare_parser
from blockkd.commands.composing import read_recipe
from blockkd.commands.distill import all_methods, distill_parser
from blockkd.commands.entries import stored_entries
from blockkd.commands.errors import InvalidInputError, printable, user_input
from blockkd.commands.invocation import Invocation, flat
from blockkd.commands.parsing import parse
from blockkd.commands.recipe import DistillRecipe, MethodFactory, TeachRecipe
from blockkd.commands.stored import check_stored
from blockkd.commands.students import student_of_file
from blockkd.commands.teach import teach_parser
from blockkd.models.weights import load_weights
from blockkd.report import TEACHER_NAME
from blockkd.runs import RECIPE, STUDENT, TEACHER, Job, Row, RunFolder

OF_LOADING = ("batch_size", "eval_batch_size", "num_workers")  # settings of data that do not change them


@dataclass(frozen=True)
class Line:
    """One method of a run.

    Attributes:
        recipe: of the run, or of this line of a comparison.
        factory: of the method.
        kind: its class.
        cross_from: the epoch, from 0, from which on ``L_cross`` counts; None where it never does.
    """

    recipe: DistillRecipe
    factory: MethodFactory
    kind: type[nn.Module]
    cross_from: int | None


@dataclass(frozen=True)
class StoredRun:
    """A run as it lies in its folder.

    Attributes:
        folder: where.
        recipe: what all methods share.
        lines: its methods by name; none where a teacher was trained by itself.
        jobs: all that it is to train, the teacher first.
        command: which goes on with it.
        data: the settings of its data.
    """

    folder: RunFolder
    recipe: TeachRecipe
    lines: dict[str, Line]
    jobs: list[Job]
    command: str
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """Its path, printable."""
        return printable(str(self.folder.path))

    @property
    def results(self) -> list[Row]:
        """Of the jobs that are finished."""
        return [result for job in self.jobs if (result := self.folder.result(job))]

    def unfinished(self) -> str | None:
        """What to say of a run that is not finished, or None."""
        done = len(self.results)
        if done == len(self.jobs):
            return None
        return (
            f"{self.name} is unfinished: {done} of {len(self.jobs)} networks are trained to the end. Go on with: "
            f"{self.command} --resume {self.name}"
        )

    def network(self, job: Job) -> nn.Module | None:
        """A trained network with its weights, or None while it is not trained.

        Raises:
            InvalidInputError: the weights cannot be read, or do not fit.
        """
        path = self.folder.path / TEACHER
        if job.method != TEACHER_NAME:
            path = self.folder.path / job.method / f"seed_{job.seed}" / STUDENT
        if not path.is_file():
            return None
        network = build_network(self.recipe.teacher.network, TEACHER_NAME)
        if job.method != TEACHER_NAME:
            line = self.lines[job.method]
            network = student_of_file(line.recipe, job.method, line.factory, path, network)[0]
        with user_input(f"{job} in {self.name} does not fit the data"):  # of several runs they are those of the first
            self.recipe.data.check_networks(network)
        with user_input(f"cannot use the weights of {job} in {self.name}"):
            load_weights(network, path)
        return network


def read_runs(paths: Sequence[Path]) -> list[StoredRun]:
    """The runs in these folders, which must be of the same data; it is read only once.

    Raises:
        InvalidInputError: there is no run, it is damaged, or the data differ.
    """
    runs: list[StoredRun] = []
    for path in paths:
        with user_input():
            folder = RunFolder.open(path)
        if any(folder.path.resolve() == run.folder.path.resolve() for run in runs):
            raise InvalidInputError(f"{path} is given twice; name each run once")
        runs.append(_read(folder, runs[0] if runs else None))
    return runs


def labels_of(runs: Sequence[StoredRun], stored: StoredRun) -> dict[str, str]:
    """What each method of a run is called on the page: its name, with the run's where others have it, too."""
    first = runs[0] is stored
    found = {}
    for method in (TEACHER_NAME, *stored.lines):
        elsewhere = any(other is not stored and method in (TEACHER_NAME, *other.lines) for other in runs)
        alone = not elsewhere or (first and method == TEACHER_NAME)
        found[method] = method if alone else f"{method} ({stored.name})"
    return found


def _read(folder: RunFolder, first: StoredRun | None) -> StoredRun:
    check_stored(folder)
    content = read_recipe(folder.path / RECIPE)
    data = first.recipe.data if first else None
    if "compare" in content:
        return _comparison(folder, first)
    distills = "student" in content
    parser = distill_parser() if distills else teach_parser()
    config = parse(parser, [f"--config={folder.path / RECIPE}"])
    settings = _data(parser, config)
    _check_same(folder, settings, first)
    recipe = Invocation(parser, config, folder).recipe(DistillRecipe if distills else TeachRecipe, data)
    lines: dict[str, Line] = {}
    if isinstance(recipe, DistillRecipe):
        nodes = [config["method"], *(config["beside"] or {}).values()]
        factories = all_methods(recipe, config)
        lines = {
            name: Line(recipe, factory, method_class(factory), _cross_from(factory, node))
            for (name, factory), node in zip(factories.items(), nodes, strict=True)
        }
    jobs = _jobs(recipe, lines)
    return StoredRun(folder, recipe, lines, jobs, f"blockkd {'distill' if distills else 'teach'}", settings)


def _comparison(folder: RunFolder, first: StoredRun | None) -> StoredRun:
    parser = compare_parser()
    if first is not None:  # before the data are read once more
        names = list(read_recipe(folder.path / RECIPE)["compare"])
        for name in names[:1]:
            stored = parse(parser, [f"--config={folder.path / str(name) / RECIPE}"])
            _check_same(folder, _data(parser, stored), first)
    entries = stored_entries(parser, folder, [])
    settings = _data(parser, entries[0].config)
    lines = {}
    for entry in entries:
        if first is not None:
            entry.recipe.data = first.recipe.data
        factory = entry.recipe.method
        cross_from = _cross_from(factory, entry.config["method"])
        lines[entry.name] = Line(entry.recipe, factory, method_class(factory), cross_from)
    recipe = entries[0].recipe
    return StoredRun(folder, recipe, lines, _jobs(recipe, lines), "blockkd compare", settings)


def _jobs(recipe: TeachRecipe, lines: dict[str, Line]) -> list[Job]:
    seeds = range(int(recipe.seed), int(recipe.seed) + int(getattr(recipe, "seeds", 0)))
    return [Job(TEACHER_NAME, int(recipe.seed)), *(Job(name, seed) for seed in seeds for name in lines)]


def _data(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    settings = {key: value for key, value in flat(parser, config).items() if key.startswith("data.")}
    return {key: value for key, value in settings.items() if key.rpartition(".")[2] not in OF_LOADING}


def _check_same(folder: RunFolder, settings: dict[str, Any], first: StoredRun | None) -> None:
    if first is None:
        return
    differing = sorted(key for key in settings.keys() | first.data.keys() if settings.get(key) != first.data.get(key))
    if differing:
        raise InvalidInputError(
            f"{first.folder.path} and {folder.path} differ in {', '.join(differing)}, but a report puts side by side "
            "only what was measured on the same data: report them one by one"
        )


def _cross_from(factory: MethodFactory, node: Any) -> int | None:
    """From the resolved recipe, as a method is built only where it is needed."""
    if not issubclass(method_class(factory), BlockKD):
        return None
    content = node.as_dict() if isinstance(node, Namespace) else dict(node)
    settings = content.get("init_args") or {}
    if not settings.get("gamma") or settings.get("stones") == []:
        return None
    return int(settings.get("cross_from_epoch", 0))
