"""Recipes and options → a checked configuration; whatever is wrong with them → one sentence."""

import argparse
import difflib
import importlib
import re
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    Namespace,
)
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from blockkd.commands.errors import InvalidInputError
from blockkd.commands.helptext import HelpFormatter
from blockkd.data.images import ImageData
from blockkd.distiller import Distiller
from blockkd.objectives import LogitDistance

# Imported so that their classes can be named without the module's path.
for _module in ("blockkd.baselines", "blockkd.block_kd", "blockkd.data", "blockkd.models"):
    importlib.import_module(_module)

_KINDS: dict[str, tuple[str, type]] = {  # the last part of an option → what it names
    "method": ("method", Distiller),
    "beside": ("method", Distiller),
    "data": ("dataset", ImageData),
    "student": ("network", nn.Module),
    "network": ("network", nn.Module),
    "optimizer": ("optimizer", Optimizer),
    "scheduler": ("scheduler", LRScheduler),
    "distance": ("logit distance", LogitDistance),
}
_WRONG_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|Unexpected import path format: (\S+)|"
    r"No module named '?([\w.]+)|cannot import name '?(\w+)|has no attribute '(\w+)'"
)


def recipe_names() -> list[str]:
    """The recipes in the package, by name."""
    root = Path(str(files("blockkd") / "recipes"))
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def recipe_path(name_or_path: str) -> Path:
    """Find a recipe: what ends in .yaml or .yml is a path, all else the name of a recipe in the package.

    Raises:
        InvalidInputError: there is no such recipe; the message gives the nearest names.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise InvalidInputError(f"there is no recipe file {path}")
        return path
    if name_or_path not in recipe_names():
        raise InvalidInputError(
            f"there is no recipe {name_or_path!r}; {nearest(name_or_path, recipe_names())} "
            "(a recipe of your own is given by its path, which ends in .yaml)"
        )
    return Path(str(files("blockkd") / "recipes" / f"{name_or_path}.yaml"))


def recipe_layers(name_or_path: str) -> list[Path]:
    """A recipe's files, its ``base``, the base's base and so on first; later ones override earlier ones.

    Raises:
        InvalidInputError: a file is missing, is not YAML, or is its own base.
    """
    layers: list[Path] = []
    following: str | None = name_or_path
    while following is not None:
        path = recipe_path(following)
        if path in layers:
            raise InvalidInputError(f"the recipe {path} is its own base; take the key 'base' out of one of them")
        layers.insert(0, path)
        content = _read_yaml(path)
        following = content.get("base")
        if following is not None and following.endswith((".yaml", ".yml")):
            following = str(path.parent / following)
    return layers


def nearest(name: str, known: Sequence[str]) -> str:
    """``"did you mean KD?"``, or the list when nothing is near."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(by_lower[match] for match in near)}?"
    return f"there are {', '.join(known)}"


class RecipeAction(ActionConfigFile):
    """``--config NAME_OR_PATH``: every layer of the recipe, from the base up."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        """Merge the recipe into what was given so far."""
        for path in recipe_layers(value):
            ActionConfigFile.apply_config(parser, cfg, dest, str(path))


def recipe_parser(command: str, recipe: type, description: str) -> ArgumentParser:
    """A parser of ``--config`` and everything that ``recipe`` (a dataclass) says."""
    parser = ArgumentParser(
        prog=f"blockkd {command}",
        description=description,
        exit_on_error=False,
        formatter_class=HelpFormatter,
        usage=f"blockkd {command} [--config NAME_OR_PATH] [options]",
        print_config=None,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action=RecipeAction, metavar="NAME_OR_PATH", help="recipe, by its name or its path (.yaml)"
    )
    parser.add_argument("--base", type=str | None, default=None, help=argparse.SUPPRESS)
    parser.add_class_arguments(recipe, sub_configs=False)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Options → configuration with every default filled in.

    Raises:
        InvalidInputError: with one sentence.
    """
    try:
        with warnings.catch_warnings():
            # What is on jsonargparse's list of suspicious imports is refused below, as no subclass of what is asked.
            warnings.filterwarnings("ignore", message=r"[\s\S]*(import path denylist|JsonargparseDeprecation)")
            config = parser.parse_args(list(argv))
    except ArgumentError as error:
        raise InvalidInputError(_explain(parser, str(error))) from error
    return config


def recipe_text(parser: ArgumentParser, config: Namespace, leave_out: Sequence[str] = ()) -> str:
    """The resolved recipe as YAML, which can be given back to ``--config``."""
    kept = config.clone()
    for key in ("config", "base", *leave_out):
        kept.pop(key, None)
    text: str = parser.dump(kept, skip_validation=True, skip_unset=False)
    return text


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{path} is not readable YAML: {_one_line(str(error))}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"the recipe {path} must hold keys and values, such as 'epochs: 30'")
    if not isinstance(content.get("base"), str | None):
        raise InvalidInputError(f"'base' in {path} must be the name or the path of one recipe")
    return content


def _explain(parser: ArgumentParser, message: str) -> str:
    stray = re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
    if stray:
        return _explain_stray(parser, stray[1].partition("=")[0])
    keys = re.findall(r'Parser key "([^"]+)"', message)
    option = f"--{'.'.join(keys)}" if keys else ""
    kind = _KINDS.get(option.rpartition(".")[2].removeprefix("--")) or _KINDS.get(option.removeprefix("--"))
    wrong_name = _WRONG_CLASS.search(message)
    if kind and wrong_name:
        name = next(group for group in wrong_name.groups() if group).rstrip(".")
        return f"unknown {kind[0]} {name!r} for {option}; {nearest(name, _class_names(kind[1]))}"
    unaccepted = re.search(r"Option '([^']+)' is not accepted", message)
    if unaccepted:
        place = f"{option} has no setting" if option else "the recipe has a key that is not known:"
        known = [name.removeprefix("--") for name in _options(parser)]
        advice = "" if option else f"; {nearest(unaccepted[1], known)}"
        return f"{place} {unaccepted[1]!r}{advice}"
    missing = re.search(r"arguments are required: (.*)", message)
    if missing and not option:
        return f"the recipe says nothing about {missing[1]}"
    reason = _plain(re.sub(r'Parser key "[^"]+":?', "", message))
    return f"{option}: {reason}" if option else reason


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
        if option.startswith("--") and not option.endswith(".help")
    ]


def _class_names(base: type) -> list[str]:
    found: set[str] = set()
    waiting: list[type[Any]] = [base]
    while waiting:
        subclasses: list[type[Any]] = waiting.pop().__subclasses__()
        waiting += subclasses
        for subclass in subclasses:
            if subclass.__module__.startswith("blockkd.") or base in (Optimizer, LRScheduler):
                found.add(subclass.__name__)
    return sorted(name for name in found if not name.startswith("_"))
