"""What a training command was asked to do: which recipe, which folder, new or resumed."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from blockkd.commands.composing import read_recipe
from blockkd.commands.errors import InvalidInputError, user_input
from blockkd.commands.parsing import make_paths_absolute, parse, recipe_text
from blockkd.commands.recipe import TeachRecipe, TrainerOptions
from blockkd.commands.stored import check_stored
from blockkd.commands.together import follows
from blockkd.data.images import ImageData
from blockkd.models.named import Named
from blockkd.runs import RECIPE, RunFolder, RunFolderError, write_text
from blockkd.text.networks import Pretrained

R = TypeVar("R", bound=TeachRecipe)

FOLDER_OPTIONS = ("output", "overwrite", "resume", "strict")
_MAY_CHANGE_ON_RESUME = (
    "seeds",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "minutes",
    "processes",
)


@dataclass(frozen=True)
class Invocation:
    """A parsed command line.

    Attributes:
        parser: the parser that read it.
        config: the resolved recipe.
        folder: of the run; not made yet, unless ``resumed``.
        overwrite: whether a run that is in the folder may be deleted.
        resumed: whether the folder's own run goes on.
        strict: whether a warning before the training stops it.
        follows: whether another process, which has started this one or was started with it, looks after the folder.
    """

    parser: ArgumentParser
    config: Namespace
    folder: RunFolder
    overwrite: bool = False
    resumed: bool = False
    strict: bool = False
    follows: bool = False

    def recipe(self, kind: type[R], data: ImageData | None = None) -> R:
        """The recipe with its data built, and factories for the rest; named networks get the data's classes.

        Args:
            kind: of recipe.
            data: taken instead of the recipe's own.
        """
        with user_input("cannot use the recipe"):
            built = self.parser.instantiate(self.config)
            built["data"] = data or built["data"]
            recipe = kind(**{field.name: built[field.name] for field in fields(kind)})
        with user_input("cannot use the data"):
            for network in (recipe.teacher.network, getattr(recipe, "student", None)):
                if isinstance(network, Named) and network.num_classes is None:
                    network.num_classes = recipe.data.num_classes
                if isinstance(network, Pretrained):
                    network.prepare(recipe.data)
        return recipe

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Around the training: what ends it says how to go on."""
        try:
            yield
        except BaseException as stop:
            stop.add_note(f"go on with: {self.parser.prog} --resume {self.folder.path}")
            raise

    def start(self) -> None:
        """Make the folder, or go on in the one that is there; from here on the run is on disk."""
        text = recipe_text(self.parser, self.config, leave_out=FOLDER_OPTIONS)
        if self.follows:
            return
        with user_input():
            if self.resumed:
                write_text(self.folder.path / RECIPE, text)
            else:
                self.folder.create(text, self.overwrite)


def add_folder_options(parser: ArgumentParser, default: str, strict: bool = False) -> None:
    """``--output``, ``--overwrite`` and ``--resume``, and where wished ``--strict``."""
    group = parser.add_argument_group("the run folder")
    group.add_argument("--output", metavar="DIR", help=f"folder of the run (default: {default})")
    group.add_argument("--overwrite", action="store_true", help="replace the run that the folder holds")
    if strict:
        group.add_argument("--strict", action="store_true", help="stop at what is only a warning before the training")
    group.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with the run in this folder, by its own recipe; --seeds and the devices may change",
    )


def read_invocation(
    parser: ArgumentParser, argv: Sequence[str], default_recipe: str, strict: bool = False
) -> Invocation:
    """Parse the options of a training command; ``strict``, whether it knows ``--strict``.

    Raises:
        InvalidInputError: options, recipe or folder cannot be used.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--config", action="append", default=[])
    own.add_argument("--output")
    own.add_argument("--overwrite", action="store_true")
    own.add_argument("--resume")
    if strict:
        own.add_argument("--strict", action="store_true")
    try:
        options, rest = own.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise InvalidInputError(f"{error}") from error
    if options.resume is not None:
        return _resumed(parser, options, rest)
    recipes = options.config or [default_recipe]
    config = parse(parser, [*(f"--config={name}" for name in recipes), *rest])
    make_paths_absolute(config)
    folder = RunFolder(options.output or Path("runs") / _run_name(recipes[-1]))
    another_looks = _follows(config)
    if not another_looks:
        with user_input():
            folder.check_free(options.overwrite)
    strictly = getattr(options, "strict", False)
    return Invocation(parser, config, folder, overwrite=options.overwrite, strict=strictly, follows=another_looks)


def _resumed(parser: ArgumentParser, options: argparse.Namespace, rest: Sequence[str]) -> Invocation:
    for option in ("config", "output", "overwrite", "strict"):
        if getattr(options, option, None):
            raise InvalidInputError(f"--resume takes the recipe and the folder from the run; leave out --{option}")
    try:
        folder = RunFolder.open(options.resume)
    except RunFolderError as error:
        raise InvalidInputError(f"{error}") from error
    check_stored(folder)
    if "compare" in read_recipe(folder.path / RECIPE):
        raise InvalidInputError(f"{folder.path} holds a comparison; go on with blockkd compare --resume {folder.path}")
    stored = parse(parser, [f"--config={folder.path / RECIPE}"])
    config = parse(parser, [f"--config={folder.path / RECIPE}", *rest])
    check_unchanged(parser, stored, config)
    return Invocation(parser, config, folder, resumed=True, follows=_follows(config))


def _follows(config: Namespace) -> bool:
    options = config["trainer"]
    if not isinstance(options, Namespace):  # which the parser lets pass
        raise InvalidInputError(f"trainer is a {type(options).__name__}, expected options by name, such as devices: 1")
    return follows(TrainerOptions(**options.as_dict()))


def check_unchanged(parser: ArgumentParser, stored: Namespace, config: Namespace) -> None:
    """Raise InvalidInputError when a resumed run would change what it must keep."""
    before, after = flat(parser, stored), flat(parser, config)
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    refused = [key for key in changed if not key.startswith(_MAY_CHANGE_ON_RESUME)]
    if refused:
        raise InvalidInputError(
            f"a resumed run keeps its recipe, but {', '.join(refused)} would change; "
            "leave it out, or start another run with --output"
        )
    if after.get("seeds", 1) < before.get("seeds", 1):
        raise InvalidInputError(f"the run has {before['seeds']} seeds; --seeds can only add to them")


def flat(parser: ArgumentParser, config: Namespace, leave_out: Sequence[str] = FOLDER_OPTIONS) -> dict[str, Any]:
    """Option → value of all that a resolved recipe says."""

    def walk(value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {key: value}
        return {name: leaf for part in value for name, leaf in walk(value[part], f"{key}.{part}").items()}

    content = yaml.safe_load(recipe_text(parser, config, leave_out))
    return {key.removeprefix("."): value for key, value in walk(content, "").items()}


def _run_name(recipe: str) -> str:
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        return recipe
    return path.absolute().parent.name if path.name == RECIPE else path.stem
