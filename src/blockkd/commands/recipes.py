"""``blockkd recipes [NAME]``: which recipes there are, or one of them as YAML."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from blockkd.commands.composing import (
    SUFFIXES,
    compose,
    first_sentence,
    is_plain,
    methods_of,
    pairs,
    recipe_names,
)
from blockkd.commands.errors import InvalidInputError, nearest
from blockkd.commands.helptext import HelpFormatter
from blockkd.commands.machine import Document, add_json_option
from blockkd.commands.next_steps import command, say_next
from blockkd.commands.parsing import explain

LONGEST = 100  # characters of what is said about a recipe in a list
DESCRIPTION = (
    "List the recipes in the package, or those whose name begins so; with the whole name of one, or with the path of a "
    "file, print it as YAML with all that it rests on, as --config takes it: blockkd recipes NAME > mine.yaml"
)


def run(argv: Sequence[str]) -> Document:
    """Run the command; returns what ``--json`` prints."""
    name = _parse(argv)
    if name in recipe_names() or any(part.endswith(SUFFIXES) for part in (name, name.rpartition("/")[0])):
        recipe = compose(name)
        print(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=120), end="")
        return {"name": name, "recipe": recipe}
    listed = _begins(name)
    if not listed:
        groups = {one.rpartition("/")[0] for one in recipe_names()} | {one.partition("/")[0] for one in recipe_names()}
        raise InvalidInputError(f"there is no recipe {name!r}; {nearest(name, [*sorted(groups), *recipe_names()])}")
    _show(name, listed)
    return {"recipes": [{"name": one, "about": _about(one)} for one in listed]}


def recipes_parser() -> ArgumentParser:
    """The options of ``recipes``."""
    parser = ArgumentParser(
        prog="blockkd recipes",
        description=DESCRIPTION,
        exit_on_error=False,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", type=str, nargs="?", default="", metavar="NAME", help="of a recipe, or how names begin")
    add_json_option(parser)
    return parser


def _parse(argv: Sequence[str]) -> str:
    parser = recipes_parser()
    try:
        return str(parser.parse_args(list(argv))["name"]).rstrip("/")
    except ArgumentError as error:
        raise InvalidInputError(explain(parser, str(error))) from error


def _begins(name: str) -> list[str]:
    """All recipes; or those of a task, or of a pair."""
    return [one for one in recipe_names() if not name or one.startswith(f"{name}/")]


def _show(name: str, listed: Sequence[str]) -> None:
    whole = [one for one in listed if is_plain(one)]
    _section("recipes", {one: first_sentence(one) for one in whole})
    if name in pairs():
        _section(f"methods on {name}", {one: _about(one) for one in listed})
    else:
        found = [pair for pair in pairs() if any(one.startswith(f"{pair}/") for one in listed)]
        _section("pairs, each with a method behind it: PAIR/METHOD", {pair: _networks(pair) for pair in found})
        for families in _alike({pair.partition("/")[0] for pair in found}):
            methods = methods_of(families[0])
            _section(f"methods on {', '.join(families)}", {one: first_sentence(part) for one, part in methods.items()})
    one = next((one for one in listed if one.endswith("/block_kd")), listed[0])
    trains = "teach" if one.endswith("/teacher") else "distill"
    say_next({command("recipes", one): "one of them as YAML", command(trains, "--config", one): "a run of it"})


def _section(title: str, lines: Mapping[str, str]) -> None:
    if lines:
        width = max(map(len, lines))
        said = {name: shorten(about, LONGEST, placeholder=" ...") for name, about in lines.items()}
        print("\n".join([f"{title}:", *(f"  {name:<{width}}  {about}".rstrip() for name, about in said.items()), ""]))


def _alike(families: Iterable[str]) -> list[list[str]]:
    """Families of recipes that have the same methods, together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for family in sorted(families):
        groups.setdefault(tuple(methods_of(family).values()), []).append(family)
    return list(groups.values())


def _about(name: str) -> str:
    """One line about a recipe."""
    if is_plain(name):
        return first_sentence(name)
    return first_sentence(methods_of(name.partition("/")[0])[name.rpartition("/")[2]])


def _networks(pair: str) -> str:
    """``"resnet56 → resnet20"``; of text what the pair's file says."""
    recipe = compose(f"{pair}/{next(iter(methods_of(pair.partition('/')[0])))}")
    teacher, student = (_name(network) for network in (recipe["teacher"]["network"], recipe["student"]))
    return f"{teacher} → {student}" if student else first_sentence(pairs()[pair][-1])


def _name(network: Mapping[str, Any]) -> str:
    return str(network.get("init_args", {}).get("name", ""))
