"""Thousands of broken recipes and command lines: each is accepted, or refused in a sentence that names the place."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from blockkd.commands.composing import compose
from blockkd.commands.distill import distill_parser
from blockkd.commands.parsing import parse, recipe_text
from blockkd.commands.recipe import DistillRecipe
from blockkd.export import save_student
from blockkd.models import ResNet
from tests.reliability.commands import Reached, Record, count, outcome
from tests.reliability.fuzzing import CASES, KEYS, TEXTS, VALUES, cases

Steps = tuple[str | int, ...]
"""The way to a value in a recipe."""


def _resolved(name: str) -> dict[str, Any]:
    parser = distill_parser()
    content = yaml.safe_load(recipe_text(parser, parse(parser, ["--config", name]), ("output", "overwrite", "resume")))
    assert isinstance(content, dict)
    return content


# Of which a refusal must name one: a field of the recipe, or the file where it has no fields.
FIELDS = [*(field.name for field in dataclasses.fields(DistillRecipe)), "recipe"]
ORIGINALS = [
    compose("digits/block_kd"),
    _resolved("digits/block_kd"),
    {**compose("digits/block_kd"), "teacher": {**compose("digits/teacher")["teacher"], "network": "resnet14"}},
]


def ways(value: Any, above: Steps = ()) -> Iterator[Steps]:
    """The way to every value of a recipe, inner ones included."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*above, key)
        yield from ways(part, (*above, key))


def at(recipe: Any, way: Steps) -> Any:
    """The value at the end of the way."""
    for key in way:
        recipe = recipe[key]
    return recipe


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe with one to three places changed."""
    recipe = copy.deepcopy(draw(st.sampled_from(ORIGINALS)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        way = draw(st.sampled_from(sorted(ways(recipe), key=repr) or [("epochs",)]))
        place, key = at(recipe, way[:-1]), way[-1]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename", "wrap", "swap"]))
        if kind == "replace" or isinstance(place, list):
            place[key] = draw(VALUES)
        elif kind == "remove":
            place.pop(key, None)
        elif kind == "add":
            place[draw(KEYS)] = draw(VALUES)
        elif kind == "rename":
            place[draw(KEYS)] = place.pop(key, None)
        elif kind == "wrap":
            place[key] = draw(
                st.sampled_from([[place.get(key)], {"x": place.get(key)}, {"class_path": place.get(key)}])
            )
        else:
            place[key] = copy.deepcopy(at(recipe, draw(st.sampled_from(sorted(ways(recipe), key=repr)))))
    return recipe


def reach(*arguments: object, **options: object) -> None:
    """Stands where a command's work would begin."""
    del arguments, options
    raise Reached


@pytest.fixture(scope="module", autouse=True)
def commands_without_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every command stops where its input is read, and parsed and built; in a folder with one file of weights."""
    from blockkd.commands.checks import build_network

    def build(recipe: DistillRecipe, *arguments: object) -> None:
        del arguments
        build_network(recipe.teacher.network, "teacher")
        build_network(recipe.student, "student")  # type: ignore[arg-type]  # no fuzzed recipe is of text
        raise Reached

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        patch.setattr("blockkd.commands.distill.train", build)
        patch.setattr("blockkd.commands.inspect._setup", build)
        patch.setattr("blockkd.commands.compare._train", reach)
        patch.setattr("blockkd.commands.evaluate._in_file", reach)
        save_student(ResNet(depth=8, num_classes=10), "weights.safetensors")
        yield


COMMANDS = {
    "distill": ["distill", "--config", "recipe.yaml"],
    "compare": ["compare", "recipe.yaml"],
    "inspect": ["inspect", "--config", "recipe.yaml"],
    "evaluate": ["evaluate", "weights.safetensors", "--config", "recipe.yaml"],
}


def checked(argv: list[str]) -> str | None:
    """The outcome of a command that must leave the folder as it was."""
    before = sorted(Path().iterdir())
    said = outcome(argv)
    assert sorted(Path().iterdir()) == before
    return said


@pytest.mark.parametrize("command", COMMANDS)
def test_fuzz_recipe(command: str, record_property: Record) -> None:
    drawn = 0

    @cases({"distill": 600, "compare": 150, "inspect": 150, "evaluate": 150}[command])
    @given(mutated())
    def run(recipe: dict[str, Any]) -> None:
        nonlocal drawn
        drawn += 1
        Path("recipe.yaml").write_text(yaml.dump(recipe, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
        said = checked(COMMANDS[command])
        assert said is None or any(field in said for field in FIELDS), said

    run()
    count(record_property, CASES, drawn)


@pytest.mark.parametrize("command", ["distill", "inspect"])
def test_fuzz_text(command: str, record_property: Record) -> None:
    """The recipe's file with characters changed, dropped and doubled."""
    text = yaml.safe_dump(ORIGINALS[1], sort_keys=False)
    drawn = 0

    @cases(200)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, len(text)),
                st.integers(0, 8),
                st.one_of(TEXTS, st.sampled_from(list(":-[]{}&*!|>%@`#\t"))),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def run(edits: list[tuple[int, int, str]]) -> None:
        nonlocal drawn
        drawn += 1
        edited = text
        for start, length, new in edits:
            edited = edited[:start] + new + edited[start + length :]
        Path("recipe.yaml").write_bytes(edited.encode("utf-8", errors="surrogatepass"))
        checked(COMMANDS[command])

    run()
    count(record_property, CASES, drawn)


OPTIONS = [
    *("--config", "--data", "--data.batch_size", "--data.val_share", "--teacher.network", "--teacher.network.depth"),
    *("--teacher.weights", "--teacher.epochs", "--teacher.optimizer", "--teacher.optimizer.lr", "--student"),
    *(
        "--student.widths",
        "--student.num_classes",
        "--method",
        "--method.alpha",
        "--method.stones",
        "--method.distance",
    ),
    *("--beside", "--beside.kd", "--epochs", "--optimizer", "--optimizer.momentum", "--scheduler", "--seed", "--seeds"),
    *("--threads", "--channels_last", "--fold_teacher", "--record_teacher", "--trainer", "--trainer.devices"),
    *("--trainer.precision", "--trainer.strategy", "--trainer.gradient_clip_val", "--output", "--resume", "--nothing"),
]


def test_fuzz_command_line(record_property: Record) -> None:
    drawn = 0
    option = st.tuples(st.sampled_from(OPTIONS), st.one_of(TEXTS, VALUES.map(repr), VALUES.map(str)), st.booleans())

    @cases(600)
    @given(st.sampled_from(["distill", "inspect", "compare", "evaluate", "teach"]), st.lists(option, max_size=3), TEXTS)
    def run(command: str, given_: list[tuple[str, str, bool]], stray: str) -> None:
        nonlocal drawn
        drawn += 1
        argv = [command, *{"compare": ["digits/block_kd"], "evaluate": ["weights.safetensors"]}.get(command, [])]
        for name, value, joined in given_:
            argv += [f"{name}={value}"] if joined else [name, value]
        if not given_:
            argv.append(stray)
        if {"--help", "-h"} & set(argv):
            return
        checked(argv)

    run()
    count(record_property, CASES, drawn)


def test_null_for_the_methods_beside_is_none() -> None:
    Path("recipe.yaml").write_text("base: digits/block_kd\nbeside: null\n")
    assert checked(COMMANDS["distill"]) is None
