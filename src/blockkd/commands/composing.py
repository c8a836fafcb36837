"""A recipe's name or path → one mapping, put together from its parts.

A recipe may rest on another one, its ``base``, whose values it overrides. The comparisons of the field are tables of
pairs × methods, and so are their recipes: ``cifar100/resnet56-resnet20/dkd`` is ``cifar100/pairs/resnet56-resnet20``
with ``methods/dkd`` on top, and over that what the pair (or the task, its base) asks of this method under the key
``methods``, option by option as on the command line. Where pairs are the same for several tasks, as on GLUE, a family
has folders of tasks and of methods of its own: ``glue/sst2/bert-base_6-layer/pkd`` is
``glue/pairs/bert-base_6-layer`` with ``glue/tasks/sst2`` and ``glue/methods/pkd`` on top.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any

from blockkd.commands.errors import InvalidInputError, nearest, user_input
from blockkd.models.create import LIBRARIES
from blockkd.models.zoo import NETWORKS
from blockkd.plain_yaml import read_yaml

SUFFIXES = (".yaml", ".yml")
BASE = "base"  # a recipe's key, and the name of the part that all pairs of a task rest on
PAIRS, TASKS, METHODS = "pairs", "tasks", "methods"  # folders; METHODS is a key of a pair as well
CLASS, ARGUMENTS = "class_path", "init_args"
NAMED = "blockkd.models.Named"
TEXT, TEXT_DATA = "glue", "Glue"  # the family of recipes for text, and the class of its data
PRETRAINED, STUDENT_OF = "blockkd.text.networks.Pretrained", "blockkd.text.networks.StudentOf"
NETWORK_OPTIONS = ("--student", "--teacher.network")
SHORT_OPTIONS = {f"--teacher.{name}": f"--teacher.network.{name}" for name in ("name", "revision")}

Recipe = dict[str, Any]


def recipe_names() -> list[str]:
    """The recipes in the package, by name."""
    kept_apart = (PAIRS, TASKS, METHODS)
    plain = [name for name in _parts() if Path(name).parent.name not in kept_apart and Path(name).name != BASE]
    return sorted(plain) + [f"{pair}/{method}" for pair in pairs() for method in methods_of(pair.partition("/")[0])]


@cache
def pairs() -> dict[str, list[str]]:
    """Every pair on its task, by name: the parts of which it is made, the later on top of the earlier."""
    found = {}
    for part in _parts():
        family, between, pair = part.partition(f"/{PAIRS}/")
        if not between:
            continue
        tasks = [name for name in _parts() if name.startswith(f"{family}/{TASKS}/")]
        if not tasks:
            found[f"{family}/{pair}"] = [part]
        for task in tasks:
            found[f"{family}/{task.rpartition('/')[2]}/{pair}"] = [part, task]
    return found


def methods_of(family: str) -> dict[str, str]:
    """The methods of a family of recipes by name: its own, or, where it has none, those of all."""
    for folder in (f"{family}/{METHODS}/", f"{METHODS}/"):
        found = {name.removeprefix(folder): name for name in _parts() if name.startswith(folder)}
        if found:
            return found
    return {}


def first_sentence(part: str) -> str:
    """What the comment at the head of a part says first; empty where there is none."""
    lines = takewhile(lambda line: line.startswith("#"), Path(_part(part)).read_text(encoding="utf-8").splitlines())
    return re.split(r"\.\s+(?=[A-Z])", " ".join(line.strip("# ") for line in lines))[0].rstrip(".")


def compose(name_or_path: str) -> Recipe:
    """The recipe with all that it rests on.

    Args:
        name_or_path: what ends in .yaml or .yml is a path, ``PATH.yaml/METHOD`` a pair of one's own and one of the
            package's methods, all else the name of a recipe in the package.

    Raises:
        InvalidInputError: there is no such recipe (the message gives the nearest names), or a file is missing, is not
            YAML, or is its own base.
    """
    if name_or_path in pairs():  # which is a base for others, and lacks a method
        raise _unknown(name_or_path)
    recipe = _compose(name_or_path, ())
    if METHODS in recipe:
        raise InvalidInputError(
            f"{name_or_path} says under '{METHODS}' what it asks of methods, but not which one it is for; put the "
            f"method behind its name: {name_or_path}/METHOD"
        )
    for place, key in ((recipe, "student"), (recipe.get("teacher"), "network")):
        if isinstance(place, dict) and _is_network_name(place.get(key)):
            place[key] = {CLASS: NAMED, ARGUMENTS: {"name": place[key]}}
    student = recipe.get("student")
    if isinstance(student, dict) and CLASS not in student and _is_text(recipe):
        recipe["student"] = {CLASS: STUDENT_OF, **student}
    return recipe


def is_plain(name_or_path: str) -> bool:
    """Whether this is one file, and not a pair with a method behind it."""
    own_pair = name_or_path.rpartition("/")[0].endswith(SUFFIXES)
    return not own_pair and (name_or_path.endswith(SUFFIXES) or name_or_path in _parts() or name_or_path.count("/") < 2)


def networks_by_name(argv: Sequence[str]) -> list[str]:
    """Command line arguments in which networks are spelled out.

    ``--student resnet8`` becomes class path and name, ``--teacher.name`` the name of the teacher's network.
    """
    spelled: list[str] = []
    waiting = list(argv)
    while waiting:
        option, equals, value = waiting.pop(0).partition("=")
        option = SHORT_OPTIONS.get(option, option)
        network, _, setting = option.rpartition(".")
        if network in NETWORK_OPTIONS and setting == "name" and (equals or waiting):
            value = value if equals else waiting.pop(0)
            spelled += [] if _is_network_name(value) else [f"{network}={_class_of(value)}"]
            spelled.append(f"{option}={value}")
            continue
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


def _class_of(name: str) -> str:
    """Which class builds the network of this name: what is no image network's is a folder or a name on the hub."""
    return NAMED if _is_network_name(name) else PRETRAINED


def _is_text(recipe: Recipe) -> bool:
    data = recipe.get("data")
    return isinstance(data, dict) and str(data.get(CLASS)).rpartition(".")[2] == TEXT_DATA


def _spelled_out(content: Recipe) -> Recipe:
    """A recipe file in which a network that is told by its settings alone has them where the others have theirs.

    ``teacher: {name: NAME}`` becomes class path and arguments under ``network``, and likewise a student's settings.
    """
    student, teacher = content.get("student"), content.get("teacher")
    if isinstance(student, dict) and student and not {CLASS, ARGUMENTS} & student.keys():
        content = {**content, "student": _with_class(student)}
    if isinstance(teacher, dict) and (named := {key: teacher[key] for key in ("name", "revision") if key in teacher}):
        if "network" in teacher:
            raise InvalidInputError("the recipe says what the teacher is by 'name' and by 'network': leave one out")
        rest = {key: value for key, value in teacher.items() if key not in named}
        content = {**content, "teacher": {**rest, "network": _with_class(named)}}
    return content


def _with_class(settings: Recipe) -> Recipe:
    return ({CLASS: _class_of(str(settings["name"]))} if "name" in settings else {}) | {ARGUMENTS: settings}


def _compose(name_or_path: str, above: tuple[Path, ...]) -> Recipe:
    if name_or_path in pairs():
        return _laid_on_each_other(pairs()[name_or_path], above)
    if not is_plain(name_or_path):
        return _compose_pair(name_or_path, above)
    path = _find(name_or_path)
    if path.resolve() in above:
        raise InvalidInputError(f"the recipe {path} is its own base; take the key 'base' out of one of them")
    content = _spelled_out(read_recipe(path))
    base = content.pop(BASE, None)
    if base is None:
        return content
    if base.endswith(SUFFIXES) or base.rpartition("/")[0].endswith(SUFFIXES):
        base = str(path.parent / base)
    below = _compose(base, (*above, path.resolve()))
    return merge(below, content) if content else below  # one that only gives another name


def _compose_pair(name: str, above: tuple[Path, ...]) -> Recipe:
    pair, _, method = name.rpartition("/")
    if not pair.endswith(SUFFIXES) and name not in recipe_names():
        raise _unknown(name)
    recipe = _compose(pair, above)
    methods = methods_of(TEXT if _is_text(recipe) else pair.partition("/")[0])
    if method not in methods:
        raise InvalidInputError(f"there is no method {method!r} to put on {pair}; {nearest(method, [*methods])}")
    recipe = merge(recipe, _compose(methods[method], above))
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
            node = node.setdefault(ARGUMENTS, {})
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


def _laid_on_each_other(names: Sequence[str], above: tuple[Path, ...]) -> Recipe:
    recipe: Recipe = {}
    for name in names:
        recipe = merge(recipe, _compose(name, above))
    return recipe


@cache
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
