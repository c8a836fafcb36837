"""``blockkd evaluate RUN_OR_FILE``: accuracy, measured from the weights of a run's networks or in a single file."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from blockkd import costs
from blockkd.baselines.logits import CrossEntropy
from blockkd.calling import image_shape
from blockkd.commands.checks import build_network, check_classes
from blockkd.commands.composing import compose, read_recipe
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.fitting import cpu_threads, measured, module_for, quiet
from blockkd.commands.invocation import Invocation
from blockkd.commands.machine import Document
from blockkd.commands.next_steps import Steps, after_distilling, after_teaching, command, say_next
from blockkd.commands.parsing import parse, recipe_parser
from blockkd.commands.recipe import DistillRecipe, TeachRecipe, method_name
from blockkd.commands.students import network_name, student_of_file
from blockkd.commands.together import on_one_device
from blockkd.models import create_model
from blockkd.models.weights import best_fit, compare_weights, load_weights, nearest_network, read_state_dict
from blockkd.report import TEACHER_NAME, evaluation_table, print_table
from blockkd.runs import RECIPE, STUDENT, TEACHER, Row, RunFolder

DEFAULT_RECIPE = "cifar100/teacher"
_NETWORK = ("--teacher.network", "--teacher.name")
DESCRIPTION = (
    "Measure accuracy again from weights: those of a run's student and teacher, on the run's own data, or those in a "
    f"file, on the data of a recipe (without --config: {DEFAULT_RECIPE}). A file's network is the recipe's or "
    "--teacher.network; without either the one of the field's networks whose tensors the file has."
)


@dataclass(frozen=True)
class Subject:
    """A network with weights, and what it is called in the table."""

    label: str
    network: nn.Module


def run(argv: Sequence[str]) -> Document:
    """Run the command; returns what ``--json`` prints."""
    path = _path(argv)
    if path.is_file():
        with user_input():
            read_state_dict(path)  # before the data is loaded, which can take a while
    config, recipe = _recipe_of_file(argv) if path.is_file() else _recipe_of_run(path, argv)
    part = config["part"]
    with quiet(), cpu_threads(recipe.threads):
        subjects = _in_file(path, recipe, config, argv) if path.is_file() else _in_run(path, recipe, config)
        rows = [_evaluate(subject, recipe, part) for subject in subjects]
    data = recipe.data
    examples = len(getattr(data.parts, part))
    print_table(evaluation_table(rows, part, examples, data.sample, data.metrics))
    steps = _next(path, recipe)
    say_next(steps)
    return {"weights": path, "part": part, "examples": examples, "networks": rows, "next": list(steps)}


def _next(path: Path, recipe: TeachRecipe) -> Steps:
    if path.is_file():
        return {} if isinstance(recipe, DistillRecipe) else {command("recipes"): "recipes that make a student of it"}
    if not isinstance(recipe, DistillRecipe):
        return after_teaching(path)
    return after_distilling(path)


def _path(argv: Sequence[str]) -> Path:
    """The run folder or the weights file: the one argument that is neither an option nor the value of one."""
    if {"-h", "--help"} & set(argv):
        parse(evaluate_parser(TeachRecipe), ["--help"])
    is_value = False
    for argument in argv:
        if not argument.startswith("--"):
            if not is_value:
                return _existing(Path(argument))
            is_value = False
        else:
            is_value = "=" not in argument
    raise InvalidInputError("what is to be evaluated? Give a run folder or a file with weights behind 'evaluate'")


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    raise InvalidInputError(f"{path} holds no run and is no file; give a run folder, or a file with weights")


def evaluate_parser(recipe: type[TeachRecipe] = DistillRecipe) -> ArgumentParser:
    """The options of ``evaluate``, under a recipe of this kind."""
    parser = recipe_parser("evaluate", recipe, DESCRIPTION)
    parser.usage = "blockkd evaluate RUN_OR_FILE [--part val] [--config NAME_OR_PATH] [options]"
    parser.add_argument("path", type=str, metavar="RUN_OR_FILE", help="folder of a run, or a file with weights")
    parser.add_argument("--part", choices=("test", "val"), default="test", help="part of the data")
    return parser


def _recipe_of_file(argv: Sequence[str]) -> tuple[Namespace, TeachRecipe]:
    chosen = _values(argv, "--config")
    has_student = any("student" in compose(name) for name in chosen)
    return _read(argv if chosen else [f"--config={DEFAULT_RECIPE}", *argv], has_student)


def _recipe_of_run(folder: Path, argv: Sequence[str]) -> tuple[Namespace, TeachRecipe]:
    if _values(argv, "--config"):
        raise InvalidInputError(f"the run {folder} is evaluated by its own recipe; leave out --config")
    with user_input():
        recipe = RunFolder.open(folder).path / RECIPE
    content = read_recipe(recipe)
    if "compare" in content:
        raise InvalidInputError(
            f"{folder} holds a comparison; evaluate a student of it by its own recipe, such as blockkd evaluate "
            f"{folder}/kd/seed_0/{STUDENT} --config {folder}/kd/{RECIPE}"
        )
    return _read([f"--config={recipe}", *argv], "student" in content)


def _read(argv: Sequence[str], has_student: bool) -> tuple[Namespace, TeachRecipe]:
    kind = DistillRecipe if has_student else TeachRecipe
    parser = evaluate_parser(kind)
    config: Namespace = parse(parser, argv)
    return config, Invocation(parser, config, RunFolder(".")).recipe(kind)


def _values(argv: Sequence[str], option: str) -> list[str]:
    """What the command line says behind ``option``, however often."""
    joined = [argument.partition("=")[2] for argument in argv if argument.startswith(f"{option}=")]
    return joined + [value for name, value in pairwise(argv) if name == option]


def _in_run(path: Path, recipe: TeachRecipe, config: Namespace) -> list[Subject]:
    files = {TEACHER_NAME: path / TEACHER} | ({"student": path / STUDENT} if "student" in config else {})
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        raise InvalidInputError(
            f"{path} has no {' and no '.join(missing)}: the run is unfinished; "
            f"go on with blockkd {'distill' if 'student' in config else 'teach'} --resume {path}"
        )
    teacher = build_network(recipe.teacher.network, TEACHER_NAME)
    subjects = [_loaded(TEACHER_NAME, teacher, files[TEACHER_NAME])]
    if isinstance(recipe, DistillRecipe):
        subjects.append(_loaded("student", _student(recipe, config, files["student"], teacher), files["student"]))
    return subjects


def _in_file(path: Path, recipe: TeachRecipe, config: Namespace, argv: Sequence[str]) -> list[Subject]:
    state = read_state_dict(path)
    given = _values(argv, "--config") or any(argument.startswith(_NETWORK) for argument in argv)
    name, agreeing, total = nearest_network(state)
    if not given and 2 * agreeing >= total:
        example = recipe.data.example()
        channels = image_shape(example)[1]
        network = create_model(name, recipe.data.num_classes, in_channels=channels)
        subject = _loaded(name, network, path)
        print(f"{path} holds the weights of {name}: all {len(state)} tensors fit.")
        return [subject]
    teacher = build_network(recipe.teacher.network, "network")
    if not isinstance(recipe, DistillRecipe):
        return [_loaded(network_name(recipe.teacher.network, teacher), teacher, path)]
    if compare_weights(teacher, state).fits:
        return [_loaded(TEACHER_NAME, teacher, path)]
    student = _student(recipe, config, path, teacher)
    if compare_weights(student, state).fits:
        return [_loaded("student", student, path)]
    raise InvalidInputError(f"{path} fits neither the teacher nor the student of the recipe. {best_fit(state)}")


def _student(recipe: DistillRecipe, config: Namespace, path: Path, teacher: nn.Module) -> nn.Module:
    return student_of_file(recipe, method_name(config["method"]["class_path"]), recipe.method, path, teacher)[0]


def _loaded(label: str, network: nn.Module, path: Path) -> Subject:
    with user_input(f"cannot use the weights of the {label}" if label in (TEACHER_NAME, "student") else ""):
        load_weights(network, path)
    return Subject(label, network)


def _evaluate(subject: Subject, recipe: TeachRecipe, part: str) -> Row:
    with user_input("cannot use the data"):
        example, images = recipe.data.example(), getattr(recipe.data.parts, part)
    if not len(images):
        raise InvalidInputError(
            f"the {part} part of the data is empty: hold some of the training images out, as by --data.val_share 0.1"
        )
    with user_input("network and data do not fit together"):
        recipe.data.check_networks(subject.network)
    check_classes({subject.label: subject.network}, recipe.data, example)
    module = module_for(recipe.data, CrossEntropy(None, subject.network), recipe.teacher.optimizer)
    found = measured(module, recipe.data, part, on_one_device(recipe.trainer))
    return {
        "network": subject.label,
        **{metric: found[f"{part}_{metric}"] for metric in recipe.data.metrics},
        "parameters": costs.parameters(subject.network),
        "flops_per_image": costs.flops(subject.network, example),
    }
