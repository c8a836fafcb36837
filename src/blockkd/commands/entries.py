"""What is compared: recipes over the same teacher, data and seeds, each under its own name in the folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from blockkd.commands.checks import Checked, check_distilling, is_job_name
from blockkd.commands.composing import SUFFIXES, is_plain, read_recipe
from blockkd.commands.errors import InvalidInputError
from blockkd.commands.invocation import FOLDER_OPTIONS, Invocation, check_unchanged, flat
from blockkd.commands.parsing import make_paths_absolute, parse, recipe_text
from blockkd.commands.recipe import DistillRecipe, method_name
from blockkd.commands.stored import check_stored
from blockkd.runs import RECIPE, RunFolder, write_text

SHARED = ("data", "teacher", "seed", "seeds", "threads", "trainer")
OWN_OPTIONS = (*FOLDER_OPTIONS, "minutes", "processes")


@dataclass(frozen=True)
class Entry:
    """One line of the comparison.

    Attributes:
        name: of the line and of its folder.
        origin: the recipe's name or path, as it was given.
        config: the resolved recipe, of one method.
        recipe: the same, built.
    """

    name: str
    origin: str
    config: Namespace
    recipe: DistillRecipe


def read_entries(parser: ArgumentParser, recipes: Sequence[str], options: Sequence[str]) -> list[Entry]:
    """The lines of a new comparison: each recipe's method, and those that stand beside it.

    Args:
        parser: of a recipe.
        recipes: names or paths.
        options: that override every recipe.

    Raises:
        InvalidInputError: a recipe cannot be used, two lines have one name, or the recipes do not share what a fair
            comparison shares.
    """
    own = [option for option in options if option.partition("=")[0] in ("--config", "--method", "--method.class_path")]
    if own:
        raise InvalidInputError(
            f"{own[0]} would make all lines of the comparison one; give recipes in front of the options"
        )
    configs: dict[str, tuple[str, Namespace]] = {}
    wholes = [(origin, parse(parser, [f"--config={origin}", *options])) for origin in recipes]
    _check_shared(parser, wholes)
    for origin, whole in wholes:
        make_paths_absolute(whole)
        beside = whole["beside"] or {}
        name = method_name(whole["method"]["class_path"]) if beside else _name(origin, whole)
        for line, method in ((name, whole["method"]), *beside.items()):
            if line in configs:
                raise InvalidInputError(
                    f"two lines of the comparison are called {line!r}, of {configs[line][0]} and of {origin}: write a "
                    "recipe of your own under another file name"
                )
            config = whole.clone()
            config["method"], config["beside"] = method, {}
            configs[line] = (origin, config)
    return _build(parser, configs)


def stored_entries(parser: ArgumentParser, folder: RunFolder, options: Sequence[str]) -> list[Entry]:
    """The lines of the comparison in the folder; options may change what a resumed run may change.

    Raises:
        InvalidInputError: the folder holds another kind of run, or the options would change the comparison.
    """
    check_stored(folder)
    lines = read_recipe(folder.path / RECIPE).get("compare")
    if not isinstance(lines, dict) or not lines:
        raise InvalidInputError(f"{folder.path} holds no comparison; go on with blockkd distill --resume {folder.path}")
    for name, origin in lines.items():
        if not is_job_name(name) or not isinstance(origin, str):
            raise InvalidInputError(
                f"{folder.path / RECIPE} has the line {name!r} of {origin!r} under 'compare', expected a name of "
                "letters, digits, - and _ and the recipe that it came from"
            )
    configs: dict[str, tuple[str, Namespace]] = {}
    for name, origin in lines.items():
        stored = f"--config={folder.path / name / RECIPE}"
        config = parse(parser, [stored, *options])
        check_unchanged(parser, parse(parser, [stored]), config)
        configs[name] = (origin, config)
    return _build(parser, configs)


def store_entries(parser: ArgumentParser, folder: RunFolder, entries: Sequence[Entry]) -> None:
    """Write each line's resolved recipe into the folder."""
    for entry in entries:
        (folder.path / entry.name).mkdir(exist_ok=True)
        write_text(folder.path / entry.name / RECIPE, recipe_text(parser, entry.config, leave_out=OWN_OPTIONS))


def entries_text(entries: Sequence[Entry], command: str) -> str:
    """The command, the lines and their origins, as YAML for the folder's recipe."""
    lines = {entry.name: entry.origin for entry in entries}
    return yaml.safe_dump({"command": command, "compare": lines}, sort_keys=False, width=1000)


def stored_command(folder: RunFolder) -> str:
    """The command that began the comparison in the folder."""
    return str(read_recipe(folder.path / RECIPE).get("command"))


def check_entries(entries: Sequence[Entry], tried: bool = True) -> Checked:
    """Check every line as ``check_distilling`` does."""
    found = [check_distilling(entry.recipe, {entry.name: entry.recipe.method}, tried) for entry in entries]
    return Checked(found[-1].teacher, {name: trial for checked in found for name, trial in checked.trials.items()})


def differing_settings(parser: ArgumentParser, entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Settings beside the method that are not the same for all: option → its value by line."""
    settings = {entry.name: flat(parser, entry.config, OWN_OPTIONS) for entry in entries}
    options = dict.fromkeys(option for values in settings.values() for option in values)
    values = {option: {name: values.get(option) for name, values in settings.items()} for option in options}
    return {
        option: by_line
        for option, by_line in values.items()
        if not option.startswith("method.") and len({repr(value) for value in by_line.values()}) > 1
    }


def _name(origin: str, config: Namespace) -> str:
    if origin.endswith(SUFFIXES):
        path = Path(origin)
        return path.absolute().parent.name if path.name == RECIPE else path.stem
    return method_name(config["method"]["class_path"]) if is_plain(origin) else origin.rpartition("/")[2]


def _check_shared(parser: ArgumentParser, configs: Sequence[tuple[str, Namespace]]) -> None:
    (first, reference), *others = configs
    expected = flat(parser, reference, OWN_OPTIONS)
    for name, config in others:
        got = flat(parser, config, OWN_OPTIONS)
        different = [
            option
            for option in sorted(expected.keys() | got.keys())
            if option.partition(".")[0] in SHARED and expected.get(option) != got.get(option)
        ]
        if different:
            raise InvalidInputError(
                f"{first} and {name} differ in {', '.join(different)}, but what is compared must share teacher, data "
                f"and seeds; give one value for all, such as --{different[0]} VALUE"
            )


def _build(parser: ArgumentParser, configs: Mapping[str, tuple[str, Namespace]]) -> list[Entry]:
    """Build all recipes over one and the same dataset, which is read only once."""
    entries: list[Entry] = []
    for name, (origin, config) in configs.items():
        data = entries[0].recipe.data if entries else None
        recipe = Invocation(parser, config, RunFolder(".")).recipe(DistillRecipe, data)
        entries.append(Entry(name, origin, config, recipe))
    return entries
