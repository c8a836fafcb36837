"""Networks of timm, torchvision and transformers by name, with the same options and the same errors."""

import difflib
import importlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blockkd.models.logits_only import returning_logits

# Options of timm by which a name would stand for other weights than its own.
_OTHER_WEIGHTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
_ATTENTION = ("attn_implementation", "_attn_implementation", "experts_implementation")


def from_timm(name: str, num_classes: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """The network that timm calls ``name``; see ``create_model``."""
    timm = _library("timm", name)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(f"timm has no network called {name!r}; {nearest(name, timm.list_models())}")
    if (tag or pretrained) and not timm.is_model_pretrained(name):
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        raise ValueError(f"timm has no pretrained weights called {name!r}; {_what_there_is(known)}")
    if refused := [option for option in _OTHER_WEIGHTS if option in options]:
        raise ValueError(f"{refused[0]} would load weights that no check of ours has seen: give the file as weights")
    if (pinned := _timm_revision(timm, name, pretrained, options.pop("revision", None))) is not None:
        options["pretrained_cfg_overlay"] = {"hf_hub_id": pinned}
    if "in_channels" in options:
        options["in_chans"] = options.pop("in_channels")
    network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    return network


def from_torchvision(name: str, num_classes: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """The network that torchvision calls ``name``; see ``create_model``."""
    models = _library("torchvision.models", name)
    architecture, _, tag = name.partition(".")
    classifiers = models.list_models(module=models)
    if architecture not in classifiers:
        raise ValueError(f"torchvision has no classifier called {name!r}; {nearest(name, classifiers)}")
    known = models.get_model_weights(architecture).__members__
    if tag and tag not in known:
        tags = [f"{architecture}.{member}" for member in known]
        raise ValueError(f"torchvision has no pretrained weights called {name!r}; {_what_there_is(tags)}")
    if options.pop("revision", None) is not None:
        raise ValueError(
            f"torchvision's weights have no revisions, their names are final: leave revision out of {name!r}"
        )
    if options.pop("in_channels", 3) != 3:
        raise ValueError("torchvision's networks take 3 channels; timm's take any (timm/NAME)")
    if not pretrained:
        network: nn.Module = models.get_model(architecture, num_classes=num_classes, **options)
        return network
    weights = known[tag or "DEFAULT"]
    network = models.get_model(architecture, weights=weights, **options)
    if len(weights.meta["categories"]) != num_classes:
        _take_classifiers(network, models.get_model(architecture, num_classes=num_classes))
    return network


def from_transformers(name: str, num_classes: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """The image classifier in the local folder or on the hub that is called ``name``; see ``create_model``."""
    transformers = _library("transformers", name)
    revision = options.pop("revision", None)
    if {"trust_remote_code", "code_revision"} & options.keys():
        raise ValueError("code that comes with a network is never run: leave out trust_remote_code and code_revision")
    if "in_channels" in options:
        options["num_channels"] = options.pop("in_channels")
    if foreign := [option for option in _ATTENTION if "/" in str(options.get(option, ""))]:
        raise ValueError(f"code from the hub is never run: {foreign[0]} must be one of transformers' own names")
    folder = Path(name).expanduser()
    where = str(folder) if folder.is_dir() else name
    if where == name and revision is None:
        _warn_unpinned(f"transformers/{name}")
    try:
        config, unknown = transformers.AutoConfig.from_pretrained(
            where, revision=revision, return_unused_kwargs=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"transformers finds no network at {name!r}, neither as a folder with config.json nor on the hub: "
            f"{_first_line(error)}"
        ) from error
    if unknown:
        raise TypeError(f"the configuration of {name!r} ({type(config).__name__}) has no {', '.join(unknown)}")
    if config.num_labels != num_classes:
        config.num_labels = num_classes
    build = transformers.AutoModelForImageClassification
    # Both would otherwise take the number format from the checkpoint, in which training may not be possible.
    settings = {"config": config, "dtype": torch.float32, "trust_remote_code": False}
    try:
        if not pretrained:
            return returning_logits(build.from_config(**settings))
        network, report = build.from_pretrained(
            where, revision=revision, ignore_mismatched_sizes=True, output_loading_info=True, **settings
        )
    except (OSError, ValueError) as error:
        what = "load the pretrained weights of" if pretrained else "build an image classifier from"
        raise ValueError(f"transformers cannot {what} {name!r}: {_first_line(error)}") from error
    _check_only_head_is_new(network, report, name, num_classes)
    return returning_logits(network.train())  # loaded, it comes in evaluation mode


def _timm_revision(timm: Any, name: str, pretrained: bool, revision: str | None) -> str | None:
    """What timm calls these weights at this revision: ``organisation/name@revision``; None for what it takes itself."""
    if not pretrained:
        if revision is not None:
            raise ValueError(
                f"revision is {revision!r}, but nothing is loaded for 'timm/{name}': set pretrained as well"
            )
        return None
    on_hub = getattr(timm.models.get_pretrained_cfg(name), "hf_hub_id", None)
    if revision is None:
        if on_hub:
            _warn_unpinned(f"timm/{name}")
        return None
    if not on_hub:
        raise ValueError(f"the weights of 'timm/{name}' are not on the hub, so they have no revision: leave it out")
    return f"{on_hub}@{revision}"


def _warn_unpinned(name: str) -> None:
    warnings.warn(
        f"{name!r} is taken from the hub in its newest state, which can change between two runs: name a commit as the "
        "option revision",
        stacklevel=4,
    )


def _check_only_head_is_new(network: nn.Module, report: Mapping[str, Any], name: str, num_classes: int) -> None:
    own = network.state_dict()
    new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    strange = sorted(key for key in new if own[key].shape[:1] != (num_classes,))
    if strange:
        raise ValueError(
            f"the pretrained weights of {name!r} do not fit its configuration: {len(strange)} tensors outside the "
            f"classifier are missing or of another shape ({', '.join(strange[:3])}{', ...' if strange[3:] else ''})"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """``"did you mean resnet56?"``, or the names there are when none is near."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=3)
    if not near:
        return _what_there_is(list(by_lower_case.values()))
    return f"did you mean {' or '.join(by_lower_case[match] for match in near)}?"


def _library(module: str, name: str) -> Any:
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"'{library}/{name}' needs {library}, which is not installed: pip install {library}", name=library
        ) from error


def _take_classifiers(network: nn.Module, fresh: nn.Module) -> None:
    """Put into ``network`` those layers of ``fresh`` that have other shapes there: of all, the classifiers."""
    own = network.state_dict()
    for name, tensor in fresh.state_dict().items():
        if name in own and own[name].shape != tensor.shape:
            layer = name.rpartition(".")[0]
            network.set_submodule(layer, fresh.get_submodule(layer))


def _what_there_is(names: list[str]) -> str:
    return f"there are {', '.join(names[:30])}{', ...' if len(names) > 30 else ''}" if names else "there are none"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
