"""``model.int8.onnx``: the same network with whole numbers of 8 bits, made by onnxruntime out of ``model.onnx``."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from blockkd.durable import write_durably
from blockkd.exporting.calls import Named
from blockkd.exporting.errors import ExportError, NotBareError, first_line, library
from blockkd.exporting.onnx_file import tensors_in_onnx

Scheme = Literal["static", "dynamic"]
LONGEST_SHAPE = 8
ROUNDED, SCALES = "_quantized", ("_scale", "_zero_point")
TURNED = "_Transposed"  # as onnxruntime 1.32 names what it has turned around, and older ones did not


def scheme_for(network: nn.Module) -> Scheme:
    """``static`` where most weights are convolutions', ``dynamic`` else.

    Static: activations are scaled by constants that some training images give, which is the only way in which
    onnxruntime has fast convolutions. Dynamic: each batch is scaled by itself, which costs time but not accuracy, and
    is what transformers, whose activations have outliers, are commonly run with.
    """
    convolutions = sum(
        p.numel() for m in network.modules() if isinstance(m, nn.Conv1d | nn.Conv2d) for p in m.parameters()
    )
    return "static" if 2 * convolutions > sum(p.numel() for p in network.parameters()) else "dynamic"


def write_int8(source: Path, path: Path, scheme: Scheme, calibration: Iterator[Named]) -> None:
    """Quantise: weights to 8 bits per output channel, activations as the scheme says.

    Args:
        source: ``model.onnx``.
        path: what is written.
        scheme: static or dynamic.
        calibration: batches that say in which range activations lie, of training data; dynamic needs none.

    Raises:
        ExportError: onnxruntime is missing, or cannot quantise the network.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        library(module, "--int8")
    with tempfile.TemporaryDirectory() as place, _quiet():
        folded, made = Path(place, "folded.onnx"), Path(place, "int8.onnx")
        try:
            _fold(source, folded)
            _quantise(folded, made, scheme, calibration)
        except Exception as error:  # it raises what it likes
            raise ExportError(
                f"onnxruntime cannot quantise the network: {first_line(error)}; leave out --int8"
            ) from error
        check_rounded(made, folded)
        write_durably(path, made.read_bytes())


def check_rounded(path: Path, source: Path) -> None:
    """Raise NotBareError unless the tensors in the file are those of the file it was made of, but for rounding.

    Every quantised tensor, times its scale, lies within half a step of the one that bears its name in ``source``. All
    others are there as well, or scale something: at most one number for each row or column of what is scaled.
    """
    theirs = dict(tensors_in_onnx(source))
    mine = dict(tensors_in_onnx(path))
    longest = max((max(tensor.shape, default=1) for tensor in theirs.values()), default=1)
    for name, tensor in mine.items():
        original = theirs.get(name.removesuffix(ROUNDED).removesuffix(TURNED))
        if name.endswith(ROUNDED) and original is not None:
            fits = _within_half_a_step(tensor, original, mine, name)
        elif name.endswith(SCALES):
            fits = tensor.ndim <= 1 and tensor.numel() <= longest
        else:
            fits = _says_nothing(tensor) or (name in theirs and torch.equal(tensor, theirs[name]))
        if not fits:
            raise NotBareError(f"the quantised network holds {name!r}, which is nothing of the student's")


def _says_nothing(tensor: Tensor) -> bool:
    """Whether it is a single number, or the shape of something."""
    return tensor.numel() <= 1 or (tensor.dtype == torch.int64 and tensor.numel() <= LONGEST_SHAPE)


def _within_half_a_step(tensor: Tensor, original: Tensor, found: dict[str, Tensor], name: str) -> bool:
    """Whether the rounded tensor is the original, or this turned around, as onnxruntime does for a matrix product."""
    stem = name if f"{name}_scale" in found else name.removesuffix(ROUNDED)
    scale, zero = found[f"{stem}_scale"].float(), found[f"{stem}_zero_point"].float()
    for candidate in (original, original.T) if original.ndim == 2 else (original,):
        for axis in range(tensor.ndim):
            if candidate.shape != tensor.shape or (scale.numel() > 1 and tensor.shape[axis] != scale.numel()):
                continue
            shape = [-1 if place == axis else 1 for place in range(tensor.ndim)]
            step, offset = scale.view(shape), zero.view(shape)
            # A little more than a half: the step is itself a rounded number.
            if bool((((tensor.float() - offset) * step - candidate).abs() <= 0.501 * step + 1e-6).all()):
                return True
    return False


def _fold(source: Path, folded: Path) -> None:
    """Batch norm into convolutions and the like, which must be done before the weights are rounded."""
    ir, optimizer = library("onnxscript.ir", "--int8"), library("onnxscript.optimizer", "--int8")
    model = ir.load(source)
    optimizer.optimize_ir(model)
    plain = ir.to_proto(model)
    del plain.graph.value_info[:]  # shapes that onnxruntime finds anew, and otherwise takes for wrong
    folded.write_bytes(plain.SerializeToString())


def _quantise(folded: Path, made: Path, scheme: Scheme, calibration: Iterator[Named]) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(calibration, None)
            return None if batch is None else {name: tensor.numpy() for name, tensor in batch.items()}

    if scheme == "dynamic":
        quantize_dynamic(str(folded), str(made), per_channel=True, weight_type=QuantType.QInt8)
        return
    quantize_static(
        str(folded),
        str(made),
        Batches(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime advises on the root logger to do what is done here."""
    root: Any = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
