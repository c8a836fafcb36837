"""A folder that timm or transformers load by themselves, with no blockkd."""

import copy
from pathlib import Path
from typing import Any

from torch import nn

from blockkd.calling import Inputs
from blockkd.data.preprocessing import BILINEAR, Preprocessing
from blockkd.exporting.building import Description
from blockkd.exporting.calls import LENGTH, dynamic
from blockkd.exporting.errors import ExportError, library
from blockkd.exporting.preparation import Preparation, write_tokenizer
from blockkd.exporting.weights import write_json
from blockkd.text.preprocessing import TextPreprocessing
from blockkd.text.pretrained import silent

HUB, IMAGE_PROCESSOR = "hub", "preprocessor_config.json"


def hub_library(description: Description) -> str:
    """Whose network it is: ``"timm"`` or ``"transformers"``.

    Raises:
        ExportError: neither's.
    """
    if "transformers" in description:
        return "transformers"
    name = str(description.get("name", ""))
    if name.startswith("timm/"):
        return "timm"
    what = name or str(description.get("class_path", "what the method deploys"))
    raise ExportError(
        f"--format hub writes a folder for timm or transformers, and {what} is of neither: take --format safetensors, "
        "whose folder can be put on the hub as it is and is loaded by blockkd.load_exported"
    )


def write_hub(
    network: nn.Module, description: Description, inputs: Inputs, preprocessing: Preparation | None, folder: Path
) -> list[str]:
    """Write the folder.

    Args:
        network: as it is to be loaded.
        description: of the network.
        inputs: a batch.
        preprocessing: goes into the libraries' own files.
        folder: the folder; made here.

    Returns:
        The lines of Python that load it.
    """
    folder.mkdir()
    if hub_library(description) == "timm":
        assert not isinstance(preprocessing, TextPreprocessing), "timm's networks look at images"
        _write_timm(network, description, inputs, preprocessing, folder)
        return ["import timm", f'network = timm.create_model("local-dir:{folder.name}", pretrained=True)']
    kind = _write_transformers(network, inputs, preprocessing, folder)
    lines = ["import transformers", f'network = transformers.{kind}.from_pretrained("{folder.name}")']
    if isinstance(preprocessing, TextPreprocessing):
        lines.append(f'tokenizer = transformers.AutoTokenizer.from_pretrained("{folder.name}")')
    return lines


def _write_timm(
    network: nn.Module, description: Description, inputs: Any, preprocessing: Preprocessing | None, folder: Path
) -> None:
    models = library("timm.models", "--format hub of this network")
    options = dict(description["options"])
    if "in_channels" in options:
        options["in_chans"] = options.pop("in_channels")
    settings: dict[str, Any] = {"input_size": list(inputs.shape[1:])}
    config: dict[str, Any] = {"model_args": options, "pretrained_cfg": settings}
    if preprocessing is not None:
        side, shorter = preprocessing.size[0], preprocessing.resize_side
        settings |= {"mean": list(preprocessing.mean), "std": list(preprocessing.std), "interpolation": BILINEAR}
        settings |= {"crop_pct": 1.0 if shorter is None else side / shorter, "crop_mode": "center"}
        if preprocessing.labels:
            config["label_names"] = list(preprocessing.labels)
    models.save_for_hf(network, str(folder), model_config=config, safe_serialization=True)


def _write_transformers(network: Any, inputs: Inputs, preprocessing: Preparation | None, folder: Path) -> str:
    config = network.config
    kept = copy.deepcopy(config)
    try:
        if preprocessing is not None and preprocessing.labels:
            config.id2label = dict(enumerate(preprocessing.labels))
            config.label2id = {label: number for number, label in config.id2label.items()}
        config._name_or_path = ""  # a path on this machine
        with silent(library("transformers", "--format hub of this network")):
            network.save_pretrained(folder)
    finally:
        network.config = kept
    if isinstance(preprocessing, TextPreprocessing):
        write_tokenizer(preprocessing, folder)
    elif preprocessing is not None:
        write_json(folder / IMAGE_PROCESSOR, _image_processor(preprocessing))
    sequences = any(LENGTH in places.values() for places in dynamic(inputs).values())
    return f"AutoModelFor{'Sequence' if sequences else 'Image'}Classification"


def _image_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """As transformers says it: a processor that scales the shorter side and cuts out the middle."""
    height, width = preprocessing.size
    scaled = preprocessing.resize_side is not None
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": scaled,
        **({"size": {"shortest_edge": preprocessing.resize_side}} if scaled else {}),
        "resample": 2,  # bilinear
        "do_center_crop": scaled,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": preprocessing.rescale_factor,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_rgb": preprocessing.channels == 3,
    }
