"""A network's description as plain data, and the network of a description: ``config.json`` beside the weights."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from blockkd.exporting.calls import of_sizes
from blockkd.exporting.errors import ExportError, library
from blockkd.models.create import create_model
from blockkd.models.logits_only import returning_logits

Description = dict[str, Any]

NAMED = ("blockkd.models.Named", "blockkd.models.named.Named")
SENTENCES = ("blockkd.text.networks.StudentOf", "blockkd.text.networks.Pretrained")
LARGEST = 2**22  # bytes of a description


def describe(network: nn.Module, entry: Mapping[str, Any], num_classes: int) -> Description:
    """How the network can be built again, with no need of its recipe, its weights' file or a hub.

    Args:
        network: built by ``entry``.
        entry: what the recipe says of it: ``class_path`` and ``init_args``.
        num_classes: of the data, where the recipe leaves it to them.
    """
    if entry["class_path"] in SENTENCES:
        return describe_transformers(network)
    arguments = copy.deepcopy(dict(entry.get("init_args") or {}))
    if entry["class_path"] not in NAMED:
        return {"class_path": str(entry["class_path"]), "init_args": arguments}
    if str(arguments["name"]).startswith("transformers/"):
        return describe_transformers(network)
    options = dict(arguments.get("options") or {})
    options.pop("revision", None)
    return {"name": arguments["name"], "num_classes": arguments.get("num_classes") or num_classes, "options": options}


def describe_transformers(network: Any) -> Description:
    """A network of transformers by its class and its configuration."""
    config = network.config.to_dict()
    for machines_own in ("_name_or_path", "transformers_version"):
        config.pop(machines_own, None)
    config = json.loads(json.dumps(config, default=str))
    logits_only = any(kind.__name__ == "_LogitsOnly" for kind in type(network).__mro__)
    return {"transformers": type(network).__name__, "config": config, "returns_logits": logits_only}


def build(description: Mapping[str, Any]) -> nn.Module:
    """The network, with weights that mean nothing yet.

    A class path is held to what holds for recipes: it names a network, in a package that is installed.

    Raises:
        ExportError: the description is none, or names what is not there.
    """
    try:
        if "deployed_by" in description:
            return _deployed(description)
        if "name" in description:
            return create_model(
                str(description["name"]), int(description["num_classes"]), **dict(description["options"])
            )
        if "transformers" in description:
            return _of_transformers(description)
        if "class_path" in description:
            return _of_class(description)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"the description of the network cannot be used: {type(error).__name__}: {error}") from error
    raise ExportError(
        f"the description of the network has {', '.join(map(repr, description)) or 'nothing'}, expected 'name', "
        "'class_path', 'transformers' or 'deployed_by'"
    )


def read_description(path: Path) -> Description:
    """The network's description in a ``config.json``. Raises ExportError where there is none."""
    if not path.is_file():
        raise ExportError(f"{path} is missing: the folder holds no export with --format safetensors")
    if path.stat().st_size > LARGEST:
        raise ExportError(f"{path} has more than {LARGEST // 2**20} MiB, which no description takes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["network"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(f"{path} is damaged or was not written by blockkd: {error}") from error
    if not isinstance(found, dict):
        raise ExportError(f"{path} says {found!r} of the network, expected a description by names")
    return found


def _of_class(description: Mapping[str, Any]) -> nn.Module:
    """Built as a recipe builds it, so that what holds for class paths there holds here."""
    from blockkd.commands.recipe import NetworkFactory

    network: nn.Module = _factory(NetworkFactory, description)()
    return network


def _of_transformers(description: Mapping[str, Any]) -> nn.Module:
    transformers = library("transformers", "this network")
    kind, content = getattr(transformers, str(description["transformers"]), None), dict(description["config"])
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ExportError(f"transformers has no network called {description['transformers']!r}")
    config = transformers.AutoConfig.for_model(str(content.pop("model_type")), **content)
    network: nn.Module = kind(config)
    return returning_logits(network) if description["returns_logits"] else network


def _deployed(description: Mapping[str, Any]) -> nn.Module:
    """What a method deploys in the place of its student, as SimKD does; its networks are built for sizes."""
    from blockkd.commands.recipe import MethodFactory

    networks = build(description["teacher"]), build(description["student"])
    example = of_sizes(description["inputs"])
    method = _factory(MethodFactory, description["deployed_by"])(*networks, example=example)
    student: nn.Module = method.student
    return student


def _factory(kind: Any, entry: Mapping[str, Any]) -> Callable[..., Any]:
    """What a class path with arguments stands for, under all that holds for recipes."""
    from blockkd.commands.class_paths import check_class_paths
    from blockkd.commands.errors import InvalidInputError
    from blockkd.commands.parsing import explain

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=kind)
    content = {"class_path": entry["class_path"], "init_args": dict(entry.get("init_args") or {})}
    try:
        config = parser.parse_object({"network": content})
        check_class_paths(config)
    except ArgumentError as error:
        raise ExportError(f"the class in the description cannot be used: {explain(parser, str(error))}") from error
    except InvalidInputError as error:
        raise ExportError(f"the class in the description cannot be used: {error}") from error
    factory: Callable[..., Any] = parser.instantiate(config)["network"]
    return factory
