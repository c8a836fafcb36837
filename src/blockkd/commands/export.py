"""``blockkd export RUN``: the bare student in one format or several, with preprocessing and a model card."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from blockkd import costs
from blockkd.calling import Inputs
from blockkd.commands.checks import build_network, build_student
from blockkd.commands.composing import read_recipe
from blockkd.commands.distill import all_methods
from blockkd.commands.errors import InvalidInputError, nearest, user_input
from blockkd.commands.fitting import cpu_threads, quiet
from blockkd.commands.invocation import Invocation
from blockkd.commands.machine import Document, add_json_option
from blockkd.commands.parsing import parse, recipe_parser
from blockkd.commands.recipe import DistillRecipe, MethodFactory
from blockkd.commands.students import network_name, student_of_file
from blockkd.data.images import ImageData
from blockkd.exporting.building import Description, describe
from blockkd.exporting.calls import sizes
from blockkd.exporting.card import Facts, Scores
from blockkd.exporting.exporter import CARD, FORMATS, Exported, Student, check_formats, export
from blockkd.exporting.folder import check_free, sha256
from blockkd.exporting.latency import latency_facts, latency_table
from blockkd.exporting.preparation import Preparation
from blockkd.models.weights import load_weights
from blockkd.report import TEACHER_NAME, print_table
from blockkd.runs import RECIPE, STUDENT, TEACHER, Job, Row, RunFolder
from blockkd.scores import title_of
from blockkd.text.preprocessing import TextPreprocessing

FOLDER = "export"
SENTENCES = 16  # of the test part, which are said to network and files; none of them gets into a file
DESCRIPTION = (
    "Write a run's student, alone, to a folder: its weights, how images or sentences are made ready for it, and a "
    "model card. Every file is read back and compared with the student before the folder gets its name. Recipe options "
    "say where the run's data lie now, as --data.path does."
)


@dataclass(frozen=True)
class Request:
    """A parsed command line.

    Attributes:
        run: the run.
        recipe: of the student.
        config: the resolved recipe.
        entry: what the recipe says of the student's method.
        method: the same, built.
        job: which student.
        origin: the file of the recipe.
    """

    run: RunFolder
    recipe: DistillRecipe
    config: dict[str, Any]
    entry: dict[str, Any]
    method: MethodFactory
    job: Job
    origin: Path


def run(argv: Sequence[str]) -> Document:
    """Run the command; returns what ``--json`` prints."""
    options, rest = _options(argv)
    request = _request(options, rest)
    output = Path(options.output or request.run.path / FOLDER)
    formats = _formats(options.format)
    with user_input():
        check_formats(formats, options.int8)
        check_free(output, options.overwrite)
    recipe = request.recipe
    with quiet(), cpu_threads(recipe.threads), user_input():
        with Console(stderr=True).status("loading") as status:
            exported = export(
                _student(request),
                output,
                formats,
                overwrite=options.overwrite,
                int8=recipe.data if options.int8 else None,
                timed=options.benchmark,
                tell=status.update,
            )
        _show(exported)
    print(f"\n{request.job}, is in {output}; its card is {output / CARD}.")
    files = {file.name: file.bytes for file in exported.files}
    timed = latency_facts(exported.latencies) if exported.latencies else None
    return {"export": output, "files": files, "int8": exported.int8, "benchmark": timed}


def export_parser() -> argparse.ArgumentParser:
    """The command's own options, without those of the recipe."""
    parser = argparse.ArgumentParser(
        prog="blockkd export",
        description=DESCRIPTION,
        usage=f"blockkd export RUN [--format {' '.join(FORMATS)}] [options]",
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run or of a comparison; it comes first")
    add("--format", nargs="+", default=["safetensors"], metavar="FORMAT", help=f"one or more of {', '.join(FORMATS)}")
    add("--method", help="which student, by the name of its method (default: the run's own method)")
    add("--seed", type=int, help="which student, by its seed (default: the run's first)")
    add("--output", metavar="DIR", help=f"the folder to write (default: RUN/{FOLDER})")
    add("--overwrite", action="store_true", help="replace the export that the folder holds")
    add("--int8", action="store_true", help="add a quantised ONNX file, and measure it on the test part")
    add("--benchmark", action="store_true", help="time teacher, student and files on this machine's CPU")
    add_json_option(parser)
    return parser


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and those of the recipe."""
    parser = export_parser()
    if not argv or (argv[0].startswith("-") and not {"-h", "--help"} & set(argv)):
        raise InvalidInputError("what is to be exported? Give a run's folder first, as in: blockkd export runs/digits")
    try:
        return parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise InvalidInputError(f"{error}") from error


def _formats(given: Sequence[str]) -> list[str]:
    formats = list(dict.fromkeys(given))
    for name in formats:
        if name not in FORMATS:
            raise InvalidInputError(f"unknown format {name!r}; {nearest(name, FORMATS)}")
    return formats


def _request(options: argparse.Namespace, rest: Sequence[str]) -> Request:
    with user_input():
        folder = RunFolder.open(options.run)
    content = read_recipe(folder.path / RECIPE)
    path = folder.path / RECIPE
    if "compare" in content:
        lines = list(content["compare"] or ())
        if options.method is None:
            raise InvalidInputError(f"{folder.path} holds a comparison; say by --method which of {', '.join(lines)}")
        path = folder.path / _known(options.method, lines, folder) / RECIPE
        content = read_recipe(path)
    if "student" not in content:
        raise InvalidInputError(f"{folder.path} holds a teacher and no student; distil one with blockkd distill")
    parser = recipe_parser("export", DistillRecipe, DESCRIPTION)
    config = parse(parser, [f"--config={path}", *rest])
    recipe = Invocation(parser, config, folder).recipe(DistillRecipe)
    compared = path.parent != folder.path
    methods = {options.method: recipe.method} if compared else all_methods(recipe, config)
    name = next(iter(methods)) if options.method is None else _known(options.method, list(methods), folder)
    job = Job(name, int(recipe.seed) if options.seed is None else options.seed)
    seeds = range(int(recipe.seed), int(recipe.seed) + int(recipe.seeds))
    if job.seed not in seeds:
        raise InvalidInputError(f"{folder.path} has no seed {job.seed}; it has {', '.join(map(str, seeds))}")
    entry = config["method"] if compared or name not in (config["beside"] or {}) else config["beside"][name]
    return Request(folder, recipe, config.as_dict(), entry.as_dict(), methods[name], job, path)


def _known(method: str, methods: Sequence[str], folder: RunFolder) -> str:
    if method in methods:
        return method
    raise InvalidInputError(f"{folder.path} has no method {method!r}; {nearest(method, methods)}")


def _student(request: Request) -> Student:
    """The student with all that is known of it."""
    folder, recipe, job = request.run, request.recipe, request.job
    weights, theirs = folder.path / job.method / f"seed_{job.seed}" / STUDENT, folder.path / TEACHER
    result = folder.result(job)
    missing = [file for file in (weights, theirs) if not file.is_file()]
    if missing or result is None:
        what = "compare" if request.origin.parent != folder.path else "distill"
        raise InvalidInputError(
            f"{job} is not finished in {folder.path}; go on with blockkd {what} --resume {folder.path}"
        )
    teacher = build_network(recipe.teacher.network, TEACHER_NAME)
    network, deployed = student_of_file(recipe, job.method, request.method, weights, teacher)
    for role, one, path in (("student", network, weights), (TEACHER_NAME, teacher, theirs)):
        with user_input(f"cannot use the weights of the {role}"):
            load_weights(one.eval(), path)
    inputs, preprocessing = _inputs(recipe.data, network)
    return Student(
        network=network,
        description=_description(request, network, teacher, deployed),
        inputs=inputs,
        facts=_facts(request, network, teacher, result),
        preprocessing=preprocessing,
        teacher=teacher,
        fresh=None if deployed else build_student(recipe, teacher),
        deployed=deployed,
    )


def _inputs(data: ImageData, network: nn.Module) -> tuple[Inputs, Preparation | None]:
    """A batch as the network takes it, sequences as long as they get; and how raw inputs become such."""
    preprocessing: Preparation | None = data.preprocessing()
    if not isinstance(preprocessing, TextPreprocessing):
        return data.example(), preprocessing
    own, test = preprocessing.only_for(network, data.example()), data.parts.test
    tokens: list[Any] = [test[index][0] for index in range(0, len(test), -(-len(test) // SENTENCES))]
    return own.batch(tokens), own


def _description(request: Request, network: nn.Module, teacher: nn.Module, deployed: bool) -> Description:
    classes, config = request.recipe.data.num_classes, request.config
    if not deployed:
        return describe(network, config["student"], classes)
    student = build_student(request.recipe, teacher)
    return {
        "deployed_by": request.entry,
        "teacher": describe(teacher, config["teacher"]["network"], classes),
        "student": describe(student, config["student"], classes),
        "inputs": sizes(request.recipe.data.example()),
    }


def _facts(request: Request, network: nn.Module, teacher: nn.Module, result: Row) -> Facts:
    recipe, data, job = request.recipe, request.recipe.data, request.job
    theirs = request.run.result(Job(TEACHER_NAME, int(recipe.seed))) or {}
    example = data.example()
    return Facts(
        network=network_name(recipe.student, network),
        method=job.method,
        teacher=network_name(recipe.teacher.network, teacher),
        data=_data_name(data),
        seed=job.seed,
        epochs=int(result["epochs"]),
        scores=_scores(result, data.metrics),
        teacher_scores=_scores(theirs, data.metrics),
        samples={name: len(part) for name, part in zip(data.parts._fields, data.parts, strict=True)},
        sample=data.sample,
        parameters=costs.parameters(network),
        teacher_parameters=costs.parameters(teacher),
        flops=costs.flops(network, example),
        teacher_flops=costs.flops(teacher, example),
        recipe_sha256=sha256(request.origin),
    )


def _scores(result: Row, metrics: Sequence[str]) -> Scores:
    """As the run stored them, by part of the data."""
    found = {part: {metric: result.get(f"{part}_{metric}") for metric in metrics} for part in ("test", "val")}
    return {part: {metric: float(value) for metric, value in values.items() if value is not None}
            for part, values in found.items()}  # fmt: skip


def _data_name(data: ImageData) -> str:
    """The dataset's class, and where it has one its name, without the folders of this machine."""
    path, task = getattr(data, "path", None), getattr(data, "task_name", None)
    name = f"{type(data).__name__} {task}" if isinstance(task, str) else type(data).__name__
    if not isinstance(path, str):
        return name
    return f"{name} {Path(path).name if Path(path).is_absolute() else path}"


def _show(exported: Exported) -> None:
    table = Table()
    table.add_column("file")
    table.add_column("KiB", justify="right")
    table.add_column("checked")
    for file in exported.files:
        table.add_row(file.name, f"{file.bytes / 1024:,.1f}", file.shown)
    print_table(table)
    if exported.int8 is not None:
        found = exported.int8
        said = [f"{title_of(metric)} {value:.2%} (float: {found['float'][metric]:.2%})"
                for metric, value in found["int8"].items()]  # fmt: skip
        print(f"int8 ({found['scheme']}) on {found['samples']:,} test {found['sample']}s: {', '.join(said)}.")
    if exported.latencies:
        print_table(latency_table(exported.latencies))
