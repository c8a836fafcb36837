"""``model.pt2``: the network as a program of ``torch.export``, which runs without its code."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from blockkd.calling import Inputs
from blockkd.durable import write_durably
from blockkd.exporting.bare import Found
from blockkd.exporting.calls import as_function, dynamic, named, to_trace
from blockkd.exporting.errors import ExportError, first_line

_ENTRIES = re.compile(
    r"[^/]+/(data/(weights|constants)/[^/]+|data/sample_inputs/model\.pt|models/model\.json|"
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)
_PER_NODE = 2**14  # bytes that the description of one operation takes at most
_WEIGHTS = re.compile(r"/data/(weights|constants)/(?!.*config\.json$)")


def write_pt2(network: nn.Module, inputs: Inputs, path: Path) -> None:
    """Write the network, in evaluation mode, for any number of inputs.

    Args:
        network: on the CPU; takes ``inputs``.
        inputs: a batch, for kinds and sizes alone: nothing of it gets into the file.
        path: the file.

    Raises:
        ExportError: torch.export cannot follow the network.
    """
    function, example = as_function(network, inputs), to_trace(inputs)
    sizes: dict[str, Any] = {name: dict.fromkeys(places, Dim.DYNAMIC) for name, places in dynamic(inputs).items()}
    try:
        with torch.no_grad():
            if isinstance(inputs, Tensor):
                exported = torch.export.export(function, (example,), dynamic_shapes=tuple(sizes.values()))
            else:
                exported = torch.export.export(function, (), named(example), dynamic_shapes=sizes)
    except Exception as error:  # there is no end to what a network's code can do in a trace
        raise ExportError(
            f"torch.export cannot express {type(network).__name__}: {first_line(error)}; leave out --format pt2"
        ) from error
    _forget_places(exported)
    content = io.BytesIO()
    torch.export.save(exported, content)
    write_durably(path, content.getbuffer())


def tensors_in_pt2(path: Path) -> Found:
    """Every tensor in the file, with its name; refuses a file in which anything else could be.

    Raises:
        ExportError: an entry that torch.export does not write, or more bytes than the program takes.
    """
    program = torch.export.load(path)
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    found = [(name, tensor.detach()) for name, tensor in [*program.state_dict.items(), *constants.items()]]
    nodes = sum(1 for module in program.graph_module.modules() for _ in getattr(module, "graph", _NoGraph()).nodes)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry.file_size for entry in archive.infolist()}
    if strange := [name for name in entries if not _ENTRIES.fullmatch(name)]:
        raise ExportError(f"{path.name} holds {strange[0]}, which torch.export does not write")
    weights = sum(size for name, size in entries.items() if _WEIGHTS.search(name))
    allowed = sum(tensor.nbytes for _, tensor in found)
    rest = sum(entries.values()) - weights
    given = sum(tensor.nbytes for tensor in _leaves(program.example_inputs))
    if weights > allowed or rest > (nodes + len(found) + 1) * _PER_NODE + given:
        raise ExportError(f"{path.name} holds {weights + rest:,} bytes, more than its {len(found)} tensors take")
    return found


class _NoGraph:
    nodes = ()


def _leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _forget_places(program: ExportedProgram) -> None:
    """Take out which lines of which files an operation comes from: they say where the exporting machine keeps them."""
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", _NoGraph()).nodes:
            node.meta.pop("stack_trace", None)
