"""``model.onnx``: the network in the format that most runtimes read."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockkd.calling import Inputs
from blockkd.durable import write_durably
from blockkd.exporting.bare import Found
from blockkd.exporting.calls import LOGITS, as_function, dynamic, named, to_trace
from blockkd.exporting.errors import ExportError, first_line, library

LARGEST = 2**31 - 2**24  # bytes of one protobuf file, less what the graph may take
_PER_NODE = 2**12  # bytes that the description of one operation takes at most


def write_onnx(network: nn.Module, inputs: Inputs, path: Path) -> None:
    """Write the network, in evaluation mode, for any number of inputs.

    Its parameters keep their names and values, so that it can be shown what is in the file: what needs none of them is
    computed here once and for all, the rest (as batch norm into convolutions) is left to the runtimes, which do it when
    they load the file.

    Args:
        network: on the CPU; takes ``inputs``.
        inputs: a batch, for kinds and sizes alone.
        path: the file.

    Raises:
        ExportError: ONNX cannot express the network, a library is missing, or it is too large for one file.
    """
    for module in ("onnx", "onnxscript"):
        library(module, "--format onnx")
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > LARGEST:
        raise ExportError(f"the network takes {size / 1e9:.1f} GB, and a file of ONNX 2 GB at most; take --format pt2")
    function, example = as_function(network, inputs), to_trace(inputs)
    single = isinstance(inputs, Tensor)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # All sequences share batch and length, which is what these names are to say.
            warnings.filterwarnings("ignore", message="# The axis name")
            program: Any = torch.onnx.export(
                function,
                (example,) if single else (),
                kwargs=None if single else named(example),
                input_names=list(named(inputs)),
                output_names=[LOGITS],
                dynamic_shapes=tuple(dynamic(inputs).values()) if single else dynamic(inputs),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        _fold_shapes(program.model)
        content = _without_places(program.model_proto)
    except Exception as error:  # there is no end to what a network's code can do in a trace
        raise ExportError(
            f"ONNX cannot express {type(network).__name__}: {_reason(error)}; leave out --format onnx, or take pt2"
        ) from error
    write_durably(path, content.SerializeToString())


def tensors_in_onnx(path: Path) -> Found:
    """Every tensor in the file, with its name; refuses a file in which anything else could be.

    Raises:
        ExportError: values kept outside of the file, or more bytes than tensors and graph take.
    """
    onnx = library("onnx", "reading ONNX")
    model = onnx.load(path, load_external_data=False)
    found: Found = []
    for name, tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ExportError(f"{path.name} keeps {name!r} in another file")
        found.append((name, torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())))
    nodes = len(model.graph.node) + sum(len(function.node) for function in model.functions)
    allowed = sum(tensor.nbytes for _, tensor in found) + (nodes + len(found) + 1) * _PER_NODE
    if path.stat().st_size > allowed:
        raise ExportError(f"{path.name} has {path.stat().st_size:,} bytes, more than its {len(found)} tensors take")
    return found


def _fold_shapes(model: Any) -> None:
    """Compute what hangs on constants of the code alone, as shapes, and keep all that holds a parameter."""
    optimizer = library("onnxscript.optimizer", "--format onnx")
    own = set(model.graph.initializers)

    def may_fold(node: Any) -> bool | None:
        of_parameters = any(value is not None and value.name in own for value in node.inputs)
        return False if of_parameters and node.op_type != "Shape" else None

    optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=may_fold)
    optimizer.remove_unused_nodes(model)


def _tensors(model: Any) -> Any:
    graphs = [model.graph]
    holders: list[Any] = list(model.functions)
    while graphs or holders:
        if graphs:
            graph = graphs.pop()
            yield from ((tensor.name, tensor) for tensor in graph.initializer)
            yield from ((sparse.values.name, sparse.values) for sparse in graph.sparse_initializer)
            nodes = graph.node
        else:
            nodes = holders.pop().node
        for node in nodes:
            for attribute in node.attribute:
                yield from ((f"{node.name}.{attribute.name}", tensor) for tensor in _of_attribute(attribute))
                graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _of_attribute(attribute: Any) -> list[Any]:
    return [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]


def _without_places(model: Any) -> Any:
    """Without comments, which say where the exporting machine keeps the network's code."""
    for holder in (model, model.graph, *model.functions):
        del holder.metadata_props[:]
        holder.doc_string = ""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for part in (*nodes, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def _reason(error: BaseException) -> str:
    """What went wrong first: the exporter's own message is about how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
