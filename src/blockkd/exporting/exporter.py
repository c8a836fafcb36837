"""A student → its folder: written to a draft, read back, compared, and only then given its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from blockkd.calling import Inputs
from blockkd.data.images import ImageData
from blockkd.data.preprocessing import Preprocessing
from blockkd.durable import write_durably
from blockkd.exporting.accuracy import calibration, onnx_accuracy
from blockkd.exporting.bare import check_nothing_of_teacher, check_only_students, check_same, teachers_tensors
from blockkd.exporting.building import Description, build
from blockkd.exporting.card import Facts, Written, card
from blockkd.exporting.errors import ExportError, library
from blockkd.exporting.folder import MANIFEST, check_free, draft_of, manifest
from blockkd.exporting.fresh import difference_in_fresh_process
from blockkd.exporting.hub import HUB, hub_library, write_hub
from blockkd.exporting.int8 import scheme_for, write_int8
from blockkd.exporting.latency import (
    Latency,
    benchmark,
    latency_facts,
    network_contender,
    onnx_contender,
    versions,
)
from blockkd.exporting.onnx_file import tensors_in_onnx, write_onnx
from blockkd.exporting.program import tensors_in_pt2, write_pt2
from blockkd.exporting.weights import PREPROCESSING, WEIGHTS, tensors_in_safetensors, write_json, write_weights

FORMATS = ("safetensors", "onnx", "pt2", "hub")
ONNX, INT8, PT2, CARD, BENCHMARK = "model.onnx", "model.int8.onnx", "model.pt2", "README.md", "benchmark.json"


@dataclass(frozen=True)
class Student:
    """What is exported, and what is known of it.

    Attributes:
        network: with its weights, on the CPU, in evaluation mode.
        description: how it is built again; see ``blockkd.exporting.building``.
        inputs: a batch ``(B, ...)``, or such tensors by name; for kinds and sizes.
        facts: for the card.
        preprocessing: of raw inputs, where it is known.
        teacher: of which nothing may be in the export.
        fresh: a new student, as the training began with it.
        deployed: whether the method made it, out of parts of the teacher as well, as SimKD does.
    """

    network: nn.Module
    description: Description
    inputs: Inputs
    facts: Facts
    preprocessing: Preprocessing | None = None
    teacher: nn.Module | None = None
    fresh: nn.Module | None = None
    deployed: bool = False


@dataclass(frozen=True)
class Exported:
    """What came of it: the files, accuracies of the quantised one, and what was timed."""

    files: Sequence[Written]
    int8: Mapping[str, Any] | None
    latencies: Sequence[Latency]


def export(
    student: Student,
    path: Path,
    formats: Sequence[str],
    *,
    overwrite: bool = False,
    int8: ImageData | None = None,
    timed: bool = False,
    tell: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Write the student to a folder, which is there only when all of it is whole and checked.

    Args:
        student: what is exported.
        path: the folder.
        formats: some of ``FORMATS``.
        overwrite: whether an export that is there may be replaced.
        int8: data to quantise with; its training images say in which range activations lie, its test images how
            accurate the result is. None leaves the quantised file out.
        timed: time teacher, student and files on this machine.
        tell: told what is being done.

    Raises:
        NotBareError: anything but the student is in the network or in a file.
        ExportError: a format cannot express the network, a library is missing, or the folder is in use.
        OSError: it cannot be written.
    """
    check_formats(formats, int8=int8 is not None)
    check_free(path, overwrite)
    if "hub" in formats:
        hub_library(student.description)
    bare, shared = _prove(student)
    with draft_of(path, overwrite) as draft:
        files: list[Written] = []
        for name in formats:
            tell(f"writing {name}")
            files += _WRITERS[name](student, bare, draft)
        accuracies = None
        if int8 is not None:
            tell("quantising")
            accuracies, file = _quantise(student, int8, draft)
            files.append(file)
        tell("timing")
        latencies = _time(student, draft) if timed else []
        _describe(student, files, accuracies, latencies, shared, draft)
    return Exported(files, accuracies, latencies)


def check_formats(formats: Sequence[str], int8: bool = False) -> None:
    """Raise ExportError where a library is missing, or int8 has nothing to be made of."""
    if int8 and "onnx" not in formats:
        raise ExportError("--int8 is made of the ONNX file: give --format onnx as well")
    if "onnx" in formats:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            library(module, "--format onnx")


def _prove(student: Student) -> tuple[nn.Module, list[str]]:
    """A bare student with the weights, built where no teacher is; and what is the teacher's on purpose, by name."""
    bare = build(student.description)
    own = student.network.state_dict()
    if own.keys() == bare.state_dict().keys():  # else the names say what is too much
        try:
            bare.load_state_dict(own)
        except RuntimeError as error:
            raise ExportError(f"the weights do not fit the network of the recipe: {error}") from error
    check_same(student.network, bare)
    if student.teacher is None:
        return bare, []
    if student.deployed:
        return bare, teachers_tensors(student.network, student.teacher, student.fresh)
    check_nothing_of_teacher(student.network, student.teacher, student.fresh)
    return bare, []


def _safetensors(student: Student, bare: nn.Module, draft: Path) -> list[Written]:
    write_weights(student.network, student.description, draft)
    check_only_students(tensors_in_safetensors(draft / WEIGHTS), bare, WEIGHTS, spare=False)
    use = ("import blockkd", 'network = blockkd.load_exported(".")  # the folder that this card lies in')
    return [_written(draft / WEIGHTS, "tensor by tensor", use)]


def _onnx(student: Student, bare: nn.Module, draft: Path) -> list[Written]:
    write_onnx(student.network, student.inputs, draft / ONNX)
    check_only_students(tensors_in_onnx(draft / ONNX), bare, ONNX, spare=True)
    off = difference_in_fresh_process(draft / ONNX, bare, student.inputs)
    use = ("import onnxruntime", f'session = onnxruntime.InferenceSession("{ONNX}")')
    return [_written(draft / ONNX, _compared("onnxruntime", off), use)]


def _pt2(student: Student, bare: nn.Module, draft: Path) -> list[Written]:
    write_pt2(student.network, student.inputs, draft / PT2)
    check_only_students(tensors_in_pt2(draft / PT2), bare, PT2, spare=True)
    off = difference_in_fresh_process(draft / PT2, bare, student.inputs)
    use = ("import torch", f'network = torch.export.load("{PT2}").module()')
    return [_written(draft / PT2, _compared("torch without blockkd", off), use)]


def _hub(student: Student, bare: nn.Module, draft: Path) -> list[Written]:
    folder = draft / HUB
    line = write_hub(student.network, student.description, student.inputs, student.preprocessing, folder)
    renamed = hub_library(student.description) == "transformers"
    check_only_students(tensors_in_safetensors(folder / WEIGHTS), bare, f"{HUB}/{WEIGHTS}", False, renamed)
    file = _written(folder / WEIGHTS, "tensor by tensor", (f"import {line.partition('.')[0]}", f"network = {line}"))
    return [replace(file, name=f"{HUB}/{WEIGHTS}")]


_WRITERS: Mapping[str, Callable[[Student, nn.Module, Path], list[Written]]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "pt2": _pt2,
    "hub": _hub,
}


def _quantise(student: Student, data: ImageData, draft: Path) -> tuple[dict[str, Any], Written]:
    scheme, test = scheme_for(student.network), data.parts.test
    write_int8(draft / ONNX, draft / INT8, scheme, calibration(data.parts.train))
    found = {
        "scheme": scheme,
        "part": "test",
        "images": len(test),
        "float_accuracy": onnx_accuracy(draft / ONNX, test),
        "int8_accuracy": onnx_accuracy(draft / INT8, test),
    }
    return found, _written(draft / INT8, "each weight within half a step of the student's")


def _time(student: Student, draft: Path) -> list[Latency]:
    networks = {"teacher": student.teacher, "student": student.network}
    contenders = [
        network_contender(name, network, sum(tensor.nbytes for tensor in network.state_dict().values()))
        for name, network in networks.items()
        if network is not None
    ]
    files = {"student": draft / ONNX, "student, int8": draft / INT8}
    contenders += [onnx_contender(name, file) for name, file in files.items() if file.is_file()]
    return benchmark(contenders, student.inputs)


def _describe(
    student: Student,
    files: Sequence[Written],
    int8: Mapping[str, Any] | None,
    latencies: Sequence[Latency],
    shared: Sequence[str],
    draft: Path,
) -> None:
    """Card, preprocessing, timings, and last of all the list of what is there."""
    facts = replace(student.facts, versions=versions())
    if student.preprocessing is not None:
        write_json(draft / PREPROCESSING, student.preprocessing.as_dict())
    if latencies:
        write_json(draft / BENCHMARK, latency_facts(latencies))
    whose = "timm" if str(student.description.get("name", "")).startswith("timm/") else "blockkd"
    whose = "transformers" if "transformers" in student.description else whose
    text = card(facts, files, student.preprocessing, int8, shared, whose).encode("utf-8")
    for folder in (draft, draft / HUB):
        if folder.is_dir():
            write_durably(folder / CARD, text)
    told = {**asdict(facts), "int8": int8, "of_the_teacher": list(shared), "checked": {f.name: f.shown for f in files}}
    write_durably(draft / MANIFEST, manifest(draft, told).encode("utf-8"))


def _written(path: Path, shown: str, use: Sequence[str] = ()) -> Written:
    return Written(path.name, path.stat().st_size, shown, use)


def _compared(engine: str, off: float) -> str:
    return f"tensor by tensor; {engine}, batches of 1, 2 and 7: logits within {off:.1g}"
