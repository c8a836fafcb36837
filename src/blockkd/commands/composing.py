"""A recipe's name or path → one mapping, put together from its parts.

A recipe may rest on another one, its ``base``, whose values it overrides. The comparisons of the field are tables of
pairs × methods, and so are their recipes: ``cifar100/resnet56-resnet20/dkd`` is ``cifar100/pairs/resnet56-resnet20``
with ``methods/dkd`` on top, and over that what the pair (or the task, its base) asks of this method under the key
``methods``, option by option as on the command line.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from blockkd.commands.errors import InvalidInputError, nearest, user_input
from blockkd.models.create import LIBRARIES
from blockkd.models.zoo import NETWORKS
from blockkd.plain_yaml import read_yaml

SUFFIXES = (".yaml", ".yml")
BASE = "base"  # a recipe's key, and the name of the part that all pairs of a task rest on
PAIRS, METHODS = "pairs", "methods"  # folders; METHODS is a key of a pair as well
CLASS = "class_path"
NAMED = "blockkd.models.Named"
NETWORK_OPTIONS = ("--student", "--teacher.network")

Recipe = dict[str, Any]


def recipe_names() -> list[str]:
    """The recipes in the package, by name."""
    parts = _parts()
    methods = [name.removeprefix(f"{METHODS}/") for name in parts if name.startswith(f"{METHODS}/")]
    pairs = [name.split(f"/{PAIRS}/") for name in parts if f"/{PAIRS}/" in name]
    plain = [name for name in parts if not name.startswith(f"{METHODS}/") and Path(name).parent.name != PAIRS]
    plain = [name for name in plain if Path(name).name != BASE]
    return sorted(plain) + [f"{task}/{pair}/{method}" for task, pair in pairs for method in methods]


def compose(name_or_path: str) -> Recipe:
    """The recipe with all that it rests on.

    Args:
        name_or_path: what ends in .yaml or .yml is a path, ``PATH.yaml/METHOD`` a pair of one's own and one of the
            package's methods, all else the name of a recipe in the package.

    Raises:
        InvalidInputError: there is no such recipe (the message gives the nearest names), or a file is missing, is not
            YAML, or is its own base.
    """
    recipe = _compose(name_or_path, ())
    if METHODS in recipe:
        raise InvalidInputError(
            f"{name_or_path} says under '{METHODS}' what it asks of methods, but not which one it is for; put the "
            f"method behind its name: {name_or_path}/METHOD"
        )
    for place, key in ((recipe, "student"), (recipe.get("teacher"), "network")):
        if isinstance(place, dict) and _is_network_name(place.get(key)):
            place[key] = {CLASS: NAMED, "init_args": {"name": place[key]}}
    return recipe


def is_plain(name_or_path: str) -> bool:
    """Whether this is one file, and not a pair with a method behind it."""
    own_pair = name_or_path.rpartition("/")[0].endswith(SUFFIXES)
    return not own_pair and (
        name_or_path.endswith(SUFFIXES) or name_or_path in _parts() or name_or_path.count("/") != 2
    )


def networks_by_name(argv: Sequence[str]) -> list[str]:
    """Command line arguments in which ``--student resnet8`` is spelled out as class path and name."""
    spelled: list[str] = []
    waiting = list(argv)
    while waiting:
        option, equals, value = waiting.pop(0).partition("=")
        if option not in NETWORK_OPTIONS or not (equals or waiting):
            spelled.append(f"{option}{equals}{value}")
            continue
        value = value if equals else waiting.pop(0)
        known = _is_network_name(value)
        spelled += [f"{option}={NAMED}", f"{option}.name={value}"] if known else [f"{option}={value}"]
    return spelled


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Recipe:
    """``over`` laid on ``under``, key by key and as deep as both have keys.

    Another class brings its own arguments, and an empty mapping empties.
    """
    if not over:
        return {}
    if CLASS in under and over.get(CLASS, under[CLASS]) != under[CLASS]:
        return dict(over)
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _is_network_name(value: object) -> bool:
    return isinstance(value, str) and (value in NETWORKS or value.partition("/")[0] in LIBRARIES)


def _compose(name_or_path: str, above: tuple[Path, ...]) -> Recipe:
    if not is_plain(name_or_path):
        return _compose_pair(name_or_path, above)
    path = _find(name_or_path)
    if path.resolve() in above:
        raise InvalidInputError(f"the recipe {path} is its own base; take the key 'base' out of one of them")
    content = read_recipe(path)
    base = content.pop(BASE, None)
    if base is None:
        return content
    if base.endswith(SUFFIXES) or base.rpartition("/")[0].endswith(SUFFIXES):
        base = str(path.parent / base)
    return merge(_compose(base, (*above, path.resolve())), content)


def _compose_pair(name: str, above: tuple[Path, ...]) -> Recipe:
    pair, _, method = name.rpartition("/")
    if not pair.endswith(SUFFIXES) and name not in recipe_names():
        raise _unknown(name)
    if f"{METHODS}/{method}" not in _parts():
        methods = [part.rpartition("/")[2] for part in _parts() if part.startswith(f"{METHODS}/")]
        raise InvalidInputError(f"there is no method {method!r} to put on {pair}; {nearest(method, methods)}")
    pair = pair if pair.endswith(SUFFIXES) else f"/{PAIRS}/".join(pair.split("/"))
    recipe = merge(_compose(pair, above), _compose(f"{METHODS}/{method}", above))
    asked = recipe.pop(METHODS, {})
    if not isinstance(asked, dict) or not isinstance(asked.get(method, {}), dict):
        raise InvalidInputError(f"'{METHODS}' in {pair} must hold options by method, such as kd: {{method.alpha: 0.1}}")
    for option, value in asked.get(method, {}).items():
        _set(recipe, option, value, f"'{METHODS}' in {pair}")
    return recipe


def _set(recipe: Recipe, option: str, value: Any, where: str) -> None:
    """Set an option as the command line writes it: ``method.distance.beta``, without the ``init_args`` between."""
    *path, last = option.split(".")
    node = recipe
    for key in path:
        node = node.get(key, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict) or not node:
            raise InvalidInputError(f"{where} sets {option}, but the recipe has nothing at {key!r}")
        if CLASS in node:
            node = node.setdefault("init_args", {})
    node[last] = value


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith(SUFFIXES):
        path = Path(name_or_path)
        if not path.is_file():
            raise InvalidInputError(f"there is no recipe file {path}")
        return path
    if name_or_path not in _parts():
        raise _unknown(name_or_path)
    return Path(_part(name_or_path))


def _parts() -> list[str]:
    root = _root()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def _part(name: str) -> str:
    return str(_root() / f"{name}.yaml")


def _root() -> Path:
    return Path(str(files("blockkd") / "recipes"))


def _unknown(name: str) -> InvalidInputError:
    return InvalidInputError(
        f"there is no recipe {name!r}; {nearest(name, recipe_names())} "
        "(a recipe of your own is given by its path, which ends in .yaml)"
    )


def read_recipe(path: Path) -> Recipe:
    """One recipe file as it stands there, with the key ``base``.

    Raises:
        InvalidInputError: it is not readable, or says something other than keys and values.
    """
    with user_input(f"cannot use the recipe {path}"):
        content = read_yaml(path)
    if not isinstance(content, dict):
        raise InvalidInputError(f"the recipe {path} must hold keys and values, such as 'epochs: 30'")
    _check_keys(content, path)
    if not isinstance(content.get(BASE), str | None):
        raise InvalidInputError(f"'base' in {path} must be the name or the path of one recipe")
    return content


def _check_keys(value: Any, path: Path) -> None:
    for part in value if isinstance(value, list) else ():
        _check_keys(part, path)
    for key, part in value.items() if isinstance(value, dict) else ():
        if not isinstance(key, str):
            raise InvalidInputError(f"the recipe {path} has the key {key!r}, which is not a name; put it in quotes")
        if not all(key.split(".")) or re.search(r"[\s\0]", key):
            raise InvalidInputError(f"the recipe {path} has the key {key!r}, expected a name without spaces or gaps")
        if key == CLASS and not isinstance(part, str):
            raise InvalidInputError(f"'{CLASS}' in {path} is {_shown(part)}, expected the path of a class as text")
        _check_keys(part, path)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}…"
