"""``model.safetensors`` with ``config.json``: the weights by their own names, and how to build what they belong to."""

import json
from pathlib import Path
from typing import Any

import safetensors
from torch import nn

from blockkd.durable import write_durably
from blockkd.export import load_student, save_student
from blockkd.exporting.bare import Found
from blockkd.exporting.building import Description, build, read_description
from blockkd.exporting.errors import ExportError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_LENGTH = 8  # bytes in which a safetensors file says how long its head is


def write_weights(network: nn.Module, description: Description, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json``."""
    save_student(network, folder / WEIGHTS)
    write_json(folder / CONFIG, {"blockkd": 1, "network": description})


def load_exported(folder: str | Path) -> nn.Module:
    """The network that ``blockkd export --format safetensors`` wrote, with its weights.

        network = blockkd.load_exported("runs/digits/block_kd/export")
        logits = network(images)                               # of sentences: network(**inputs).logits

    Nothing is downloaded. A network of a class of one's own needs its package installed; see SECURITY.md before you
    open a stranger's folder.

    Args:
        folder: the export.

    Returns:
        The network, in evaluation mode, on the CPU.

    Raises:
        ExportError: there is no such export, or its network cannot be built here.
        ValueError: the weights do not fit.
    """
    network = build(read_description(Path(folder) / CONFIG))
    return load_student(network, Path(folder) / WEIGHTS).eval()


def tensors_in_safetensors(path: Path) -> Found:
    """Every tensor in the file, with its name; refuses a file in which anything else could be.

    Raises:
        ExportError: there is more in the file than its tensors.
    """
    with safetensors.safe_open(path, "pt") as file:
        notes: dict[str, str] = file.metadata() or {}
        found = [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
    head = int.from_bytes(path.open("rb").read(_LENGTH), "little")
    size = _LENGTH + head + sum(tensor.nbytes for _, tensor in found)
    roomy = head > 1024 + sum(256 + 2 * len(name) for name, _ in found)
    if path.stat().st_size != size or roomy or notes.keys() - {"format"}:
        raise ExportError(f"{path.name} holds more than its {len(found)} tensors")
    return found


def write_json(path: Path, content: Any) -> None:
    """Write a whole file or nothing."""
    write_durably(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
