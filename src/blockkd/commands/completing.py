"""The commands' parsers → one parser that knows every word which the tab key can complete."""

import argparse
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import shtab
from torch import nn

from blockkd.cli import COMMANDS
from blockkd.commands.composing import SHORT_OPTIONS, recipe_names
from blockkd.commands.parsing import KINDS
from blockkd.commands.settings import class_names, settings_of, subclasses
from blockkd.data.images import ImageData
from blockkd.distiller import Distiller
from blockkd.models.create import LIBRARIES
from blockkd.models.zoo import NETWORKS
from blockkd.text.networks import StudentOf

RECIPE = ("NAME_OR_PATH", "RECIPE", "NAME")  # metavars
FOLDER = ("DIR", "RUN")
FILE = ("RUN_OR_FILE",)
FILE_OPTIONS = ("weights", "against", "path")  # last part of an option's name
NETWORK_OPTIONS = ("student", "network", "name")
# Options that take a class, whose settings are options as well: --method.alpha.
SETTINGS: dict[str, type] = {"--method": Distiller, "--data": ImageData, "--student": StudentOf}


def script(shell: str) -> str:
    """What a shell reads to complete ``blockkd`` and all its commands."""
    text: str = shtab.complete(commands_parser(), shell)
    return text


def commands_parser() -> argparse.ArgumentParser:
    """A parser of all commands with plain options; it is not for parsing."""
    parser = argparse.ArgumentParser(prog="blockkd")
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers()
    for name, about in COMMANDS.items():
        known = getattr(import_module(f"blockkd.commands.{name}"), f"{name}_parser")()
        mirrored = commands.add_parser(name, help=about)
        if name == "compare":  # whose recipes its parser does not see
            _add(mirrored, [], "recipe", "RECIPE", None, nargs="*")
        for action in known._actions:
            _mirror(mirrored, action)
    return parser


def _mirror(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
    options = [option for option in action.option_strings if not option.endswith("+")]
    if action.help == argparse.SUPPRESS or any(option.endswith("help") for option in options):
        return
    hint = getattr(action, "_typehint", action.type)
    choices = [*map(str, action.choices)] if action.choices else list(dict.fromkeys(_words(options, hint)))
    nargs = 0 if action.nargs == 0 else action.nargs if action.nargs in ("+", "*") else None
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    _add(parser, options, action.dest, metavar, choices, nargs)
    for name in options:
        if name in SETTINGS and hint is not None:
            for setting, words in settings_below(SETTINGS[name]).items():
                _add(parser, [f"{name}.{setting}"], name, "", words)
        for short in SHORT_OPTIONS if name == "--teacher.network" else ():
            _add(parser, [short], name, "", list(_words([short], str)))


def _add(
    parser: argparse.ArgumentParser,
    options: list[str],
    dest: str,
    metavar: str,
    choices: Iterable[str] | None,
    nargs: str | int | None = None,
) -> None:
    if nargs == 0:
        parser.add_argument(*options, action="store_true")
        return
    last = (options[0] if options else dest).rpartition(".")[2].removeprefix("--")
    words = list(choices or ()) or None
    if metavar == "FORMAT":
        words = list(import_module("blockkd.commands.export").FORMATS)
    action = parser.add_argument(*(options or [dest]), nargs=nargs, choices=words)
    if metavar in RECIPE:
        action.complete = _recipes()  # type: ignore[attr-defined]
    elif metavar in FOLDER:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif metavar in FILE or (last in FILE_OPTIONS and not words):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def settings_below(base: type) -> dict[str, list[str]]:
    """The settings that some class of this kind takes, by name, each with the words that it can be."""
    found: dict[str, list[str]] = {}
    for one in (base, *subclasses(base)):
        for name, parameter in settings_of(one).items():
            words = found.setdefault(name, [])
            words += [word for word in _literals(parameter.annotation) if word not in words]
    return found


def _words(options: list[str], hint: Any) -> Iterator[str]:
    """What a value can be: literals, classes of its kind, networks by name."""
    last = options[0].rpartition(".")[2].removeprefix("--") if options else ""
    if hint is not None and last in KINDS and KINDS[last][1] is not nn.Module:
        yield from class_names(KINDS[last][1])
    if last in NETWORK_OPTIONS and options[0].startswith(("--student", "--teacher")):
        yield from (*NETWORKS, *(f"{library}/" for library in LIBRARIES))
    yield from _literals(hint)


def _literals(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield from map(str, get_args(hint))
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _literals(part)
    elif hint is bool:
        yield from ("true", "false")


def _recipes() -> dict[str, Any]:
    """Names of the package's recipes, or files."""
    names = " ".join(recipe_names())
    return {
        "bash": "_blockkd_recipes",
        "zsh": "_blockkd_recipes",
        "tcsh": f"({names})",
        "preamble": {
            "bash": f"""
_blockkd_recipes() {{
  compgen -W "{names}" -- "$1"
  compgen -f -X '!*.y*ml' -- "$1"
  compgen -d -S / -- "$1"
}}""",
            "zsh": f"""
_blockkd_recipes() {{
  compadd -- {names}
  _files -g '*.(yaml|yml)'
}}""",
        },
    }
