"""A student → its folder: written to a draft, read back, compared, and only then given its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from blockkd.calling import Inputs
from blockkd.data.images import ImageData
from blockkd.durable import write_durably
from blockkd.exporting.bare import Found, Shared, check_only_students, check_same, shared_tensors
from blockkd.exporting.building import Description, build
from blockkd.exporting.calls import named
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
from blockkd.exporting.preparation import Preparation, write_preparation
from blockkd.exporting.program import tensors_in_pt2, write_pt2
from blockkd.exporting.scores import calibration, onnx_scores
from blockkd.exporting.weights import WEIGHTS, tensors_in_safetensors, write_json, write_weights

FORMATS = ("safetensors", "onnx", "pt2", "hub")
ONNX, INT8, PT2, CARD, BENCHMARK = "model.onnx", "model.int8.onnx", "model.pt2", "README.md", "benchmark.json"


@dataclass(frozen=True)
class Student:
    """What is exported, and what is known of it.

    Attributes:
        network: with its weights, on the CPU, in evaluation mode.
        description: how it is built again; see ``blockkd.exporting.building``.
        inputs: a batch ``(B, ...)``, or such tensors by name: those that the network takes, sequences as long as ever.
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
    preprocessing: Preparation | None = None
    teacher: nn.Module | None = None
    fresh: nn.Module | None = None
    deployed: bool = False


@dataclass(frozen=True)
class Exported:
    """What came of it: the files, scores of the quantised one, and what was timed."""

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
        int8: data to quantise with; their training part says in which range activations lie, their test part how
            good the result is. None leaves the quantised file out.
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
        scores = None
        if int8 is not None:
            tell("quantising")
            scores, file = _quantise(student, int8, draft)
            files.append(file)
        tell("timing")
        latencies = _time(student, draft) if timed else []
        _describe(student, files, scores, latencies, shared, draft)
    return Exported(files, scores, latencies)


def check_formats(formats: Sequence[str], int8: bool = False) -> None:
    """Raise ExportError where a library is missing, or int8 has nothing to be made of."""
    if int8 and "onnx" not in formats:
        raise ExportError("--int8 is made of the ONNX file: give --format onnx as well")
    if "onnx" in formats:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            library(module, "--format onnx")


def _prove(student: Student) -> tuple[nn.Module, Shared]:
    """A bare student with the weights, built where no teacher is; and what it has of the teacher, by name."""
    bare = build(student.description)
    shared = shared_tensors(student.network, student.teacher, bare, student.fresh, student.deployed)
    own = student.network.state_dict()
    if own.keys() == bare.state_dict().keys():  # else the names say what is too much
        try:
            bare.load_state_dict(own)
        except RuntimeError as error:
            raise ExportError(f"the weights do not fit the network of the recipe: {error}") from error
    check_same(student.network, bare)
    return bare, shared


def _safetensors(student: Student, bare: nn.Module, draft: Path) -> list[Written]:
    write_weights(student.network, student.description, draft)
    check_only_students(tensors_in_safetensors(draft / WEIGHTS), bare, WEIGHTS, spare=False)
    use = ("import blockkd", 'network = blockkd.load_exported(".")  # the folder that this card lies in')
    return [_written(draft / WEIGHTS, "tensor by tensor", use)]


def _onnx(student: Student, bare: nn.Module, draft: Path) -> list[Written]:
    path = draft / ONNX
    write_onnx(student.network, student.inputs, path)
    use = ("import onnxruntime", f'session = onnxruntime.InferenceSession("{ONNX}"){_taken(student)}')
    return [_compared(path, tensors_in_onnx(path), student, bare, "onnxruntime", use)]


def _pt2(student: Student, bare: nn.Module, draft: Path) -> list[Written]:
    path = draft / PT2
    write_pt2(student.network, student.inputs, path)
    use = ("import torch", f'network = torch.export.load("{PT2}").module(){_taken(student)}')
    return [_compared(path, tensors_in_pt2(path), student, bare, "torch without blockkd", use)]


def _hub(student: Student, bare: nn.Module, draft: Path) -> list[Written]:
    folder = draft / HUB
    lines = write_hub(student.network, student.description, student.inputs, student.preprocessing, folder)
    renamed = hub_library(student.description) == "transformers"
    check_only_students(tensors_in_safetensors(folder / WEIGHTS), bare, f"{HUB}/{WEIGHTS}", False, renamed)
    return [replace(_written(folder / WEIGHTS, "tensor by tensor", lines), name=f"{HUB}/{WEIGHTS}")]


def _compared(path: Path, found: Found, student: Student, bare: nn.Module, engine: str, use: Sequence[str]) -> Written:
    """A file that runs without the network's code: its tensors are the student's, and so is what it says elsewhere."""
    check_only_students(found, bare, path.name, spare=True)
    off = difference_in_fresh_process(path, bare, student.inputs)
    return _written(path, f"tensor by tensor; {engine}, batches of 1, 2 and 7: logits within {off:.1g}", use)


def _taken(student: Student) -> str:
    """What to say behind a line that loads a network which takes named tensors."""
    return "" if isinstance(student.inputs, Tensor) else f"  # takes {', '.join(named(student.inputs))}"


_WRITERS: Mapping[str, Callable[[Student, nn.Module, Path], list[Written]]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "pt2": _pt2,
    "hub": _hub,
}


def _quantise(student: Student, data: ImageData, draft: Path) -> tuple[dict[str, Any], Written]:
    scheme = scheme_for(student.network)
    write_int8(draft / ONNX, draft / INT8, scheme, calibration(data))
    found = {
        "scheme": scheme,
        "part": "test",
        "samples": len(data.parts.test),
        "sample": data.sample,
        "float": onnx_scores(draft / ONNX, data),
        "int8": onnx_scores(draft / INT8, data),
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
    shared: Shared,
    draft: Path,
) -> None:
    """Card, preprocessing, timings, and last of all the list of what is there."""
    facts = replace(student.facts, versions=versions())
    if student.preprocessing is not None:
        write_preparation(student.preprocessing, draft)
    if latencies:
        write_json(draft / BENCHMARK, latency_facts(latencies))
    whose = "timm" if str(student.description.get("name", "")).startswith("timm/") else "blockkd"
    whose = "transformers" if "transformers" in student.description else whose
    text = card(facts, files, student.preprocessing, int8, shared, whose).encode("utf-8")
    for folder in (draft, draft / HUB):
        if folder.is_dir():
            write_durably(folder / CARD, text)
    told = {**asdict(facts), "int8": int8, "of_the_teacher": asdict(shared)}
    told["checked"] = {file.name: file.shown for file in files}
    write_durably(draft / MANIFEST, manifest(draft, told).encode("utf-8"))


def _written(path: Path, shown: str, use: Sequence[str] = ()) -> Written:
    return Written(path.name, path.stat().st_size, shown, use)
