"""Recipes and options → a checked configuration; whatever is wrong with them → one sentence."""

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    Namespace,
    set_parsing_settings,
)
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from blockkd.commands.class_paths import check_class_paths, not_to_be_named
from blockkd.commands.composing import PRETRAINED, TEXT_DATA, compose, networks_by_name
from blockkd.commands.errors import InvalidInputError, nearest
from blockkd.commands.helptext import HelpFormatter
from blockkd.commands.limits import check_numbers, check_values
from blockkd.commands.machine import add_json_option
from blockkd.commands.settings import class_names, settings_of
from blockkd.data.images import ImageData
from blockkd.distances import LogitDistance
from blockkd.distiller import Distiller
from blockkd.models.create import LIBRARIES
from blockkd.models.zoo import NETWORKS

# Imported so that their classes can be named without the module's path.
for _module in ("blockkd.baselines", "blockkd.block_kd", "blockkd.data", "blockkd.models"):
    importlib.import_module(_module)

# jsonargparse imports what a value names before it looks at it. Python's own modules hold no networks, and some act as
# soon as they are imported. (Its own list of such modules holds from its version 5 on, before that for whoever asks.)
set_parsing_settings(import_path_denylist=sorted(sys.stdlib_module_names))

KINDS: dict[str, tuple[str, type]] = {  # the last part of an option → what it names
    "method": ("method", Distiller),
    "beside": ("method", Distiller),
    "data": ("dataset", ImageData),
    "student": ("network", nn.Module),
    "network": ("network", nn.Module),
    "optimizer": ("optimizer", Optimizer),
    "scheduler": ("scheduler", LRScheduler),
    "distance": ("logit distance", LogitDistance),
}
IN_FOLDER = "transformers/"  # behind it the name on the hub, or a folder
_WRONG_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|Unexpected import path format: (\S+)|"
    r"No module named '?([\w.]+)|cannot import name '?(\w+)|has no attribute '(\w+)'"
)


class RecipeAction(ActionConfigFile):
    """``--config NAME_OR_PATH``: the recipe, put together from all that it rests on."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        """Merge the recipe into what was given so far."""
        recipe = compose(value)
        check_values(recipe, value)
        ActionConfigFile.apply_config(parser, cfg, dest, yaml.safe_dump(recipe, sort_keys=False))


def recipe_parser(
    command: str, recipe: type, description: str, usage: str = "[--config NAME_OR_PATH] [options]"
) -> ArgumentParser:
    """A parser of ``--config`` and everything that ``recipe`` (a dataclass) says."""
    parser = ArgumentParser(
        prog=f"blockkd {command}",
        description=description,
        exit_on_error=False,
        formatter_class=HelpFormatter,
        usage=f"blockkd {command} {usage}",
        print_config=None,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action=RecipeAction, metavar="NAME_OR_PATH", help="recipe, by its name or its path (.yaml)"
    )
    add_json_option(parser)
    parser.add_class_arguments(recipe, sub_configs=False)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Options → configuration with every default filled in.

    Raises:
        InvalidInputError: with one sentence.
    """
    check_values(dict(enumerate(argv, start=1)), "the command line")
    try:
        config = parser.parse_args(networks_by_name(argv))
    except ArgumentError as error:
        raise InvalidInputError(explain(parser, str(error))) from error
    check_class_paths(config)
    check_numbers(config)
    return config


def make_paths_absolute(config: Any) -> None:
    """Write out relative paths to files and folders that are there, so that a run goes on from anywhere."""
    content = vars(config) if isinstance(config, Namespace) else config
    if not isinstance(content, dict):
        return
    if content.get("class_path") == PRETRAINED:
        _make_absolute(content["init_args"], "name")
    if str(content.get("class_path")).rpartition(".")[2] == TEXT_DATA:
        _make_absolute(content["init_args"], "tokenizer")
    for name, value in content.items():
        if not isinstance(value, str):
            make_paths_absolute(value)
        elif (
            name == "record_teacher"
            or (name == "weights" and Path(value).is_file())
            or (name == "path" and Path(value).expanduser().is_dir())
        ):
            content[name] = str(Path(value).expanduser().absolute())
        elif name == "name" and value.startswith(IN_FOLDER) and Path(value.removeprefix(IN_FOLDER)).is_dir():
            content[name] = IN_FOLDER + str(Path(value.removeprefix(IN_FOLDER)).absolute())


def _make_absolute(arguments: Any, name: str) -> None:
    value = arguments.get(name)
    if isinstance(value, str) and Path(value).expanduser().is_dir():
        arguments[name] = str(Path(value).expanduser().absolute())


def recipe_text(parser: ArgumentParser, config: Namespace, leave_out: Sequence[str] = ()) -> str:
    """The resolved recipe as YAML, which can be given back to ``--config``."""
    kept = config.clone()
    for key in ("config", *leave_out):
        kept.pop(key, None)
    text: str = parser.dump(kept, skip_validation=True, skip_unset=False)
    return text


def explain(parser: ArgumentParser, message: str) -> str:
    """What jsonargparse says of an argument → one plain sentence."""
    stray = re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
    if stray:
        return _explain_stray(parser, stray[1].partition("=")[0])
    keys = re.findall(r'Parser key "([^"]+)"', message)
    option = f"--{'.'.join(keys)}" if keys else ""
    kind = KINDS.get(option.rpartition(".")[2].removeprefix("--")) or KINDS.get(option.removeprefix("--"))
    denied = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if denied:
        return str(not_to_be_named(denied[1], option.removeprefix("--")))
    wrong_name = _WRONG_CLASS.search(message)
    if kind and wrong_name:
        name = next(group for group in wrong_name.groups() if group).rstrip(".")
        known = (
            [*NETWORKS, *(f"{library}/NAME" for library in LIBRARIES)] if kind[1] is nn.Module else class_names(kind[1])
        )
        if name in known:
            return f"{option}: the class path before {name!r} does not lead to it; write {name} alone"
        return f"unknown {kind[0]} {name!r} for {option}; {nearest(name, known)}"
    unaccepted = re.search(r"Option '([^']+)' is not accepted", message)
    if unaccepted:
        place = f"{option} has no setting" if option else "the recipe has a key that is not known:"
        known = _settings_in(message) if option else [name.removeprefix("--") for name in _options(parser)]
        return f"{place} {unaccepted[1]!r}{f'; {nearest(unaccepted[1], known)}' if known else ''}"
    missing = re.search(r"arguments are required: (.*)", message)
    if missing and not option:
        return f"the recipe says nothing about {missing[1]}"
    reason = _plain(re.sub(r'Parser key "[^"]+":?', "", message))
    return f"{option}: {reason}" if option else f"the recipe or an option cannot be used: {reason}"


def _settings_in(message: str) -> list[str]:
    """The settings of the class that jsonargparse speaks of; it has imported it."""
    path = re.search(r"class_path(?:=| )'([\w.]+)\.(\w+)'", message)
    one = getattr(importlib.import_module(path[1]), path[2], None) if path else None
    return [*settings_of(one)] if isinstance(one, type) else []


def _explain_stray(parser: ArgumentParser, argument: str) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}; a value belongs behind an option, such as --epochs 10"
    near = difflib.get_close_matches(argument, _options(parser), n=3, cutoff=0.6)
    advice = f"did you mean {' or '.join(near)}?" if near else f"{parser.prog} --help lists the options"
    return f"unknown option {argument}; {advice}"


def _plain(reason: str) -> str:
    replacements = (
        (r"Type \S.*? expects a function or a callable class: ", ""),
        (r"\.? Got value: Namespace\(.*\)", ""),
        (r"Problem with given class_path '\S+':", ""),
        (r"Not of type PositiveInt: ", "expected a whole number above 0, "),
        (r"Not of type NonNegativeInt: ", "expected a whole number, 0 or more, "),
        (r"invalid literal for int\(\) with base 10: ('.*?')", r"got \1"),
        (r"(\S+) does not conform to restriction v>=?0", r"got \1"),
        (r"Expected an? <class '(\w+)'>", r"expected \1"),
        (r"Expected a typing.Literal\[(.*?)\]", r"expected one of \1"),
        (r"Expected a dot import path string: \S+", "expected a class path"),
        (r"Does not validate against any of the Union subtypes.*?Errors:", "it fits none of its types:"),
        (r"Given value type: \S+", ""),
        (r"Given value: ", "got "),
        (r"\.* Got value: ", ", got "),
    )
    for pattern, plain in replacements:
        reason = re.sub(pattern, plain, reason, flags=re.DOTALL)
    return _one_line(reason)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().rstrip(".")


def _options(parser: ArgumentParser) -> list[str]:
    return [
        option
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
        if option.startswith("--") and not option.endswith(("help", "+"))
    ]
