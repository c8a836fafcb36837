"""The model card: where a student comes from, what it is worth, what it costs, and how it is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockkd.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class Facts:
    """What a card says; taken from the run, not measured again.

    Attributes:
        network: what the student is called.
        method: by which it was distilled.
        teacher: what its teacher is called.
        data: what it was trained on.
        seed: of the student.
        epochs: it was trained for.
        accuracy: 0 … 1 after the last epoch, by part of the data; with the number of images.
        teacher_accuracy: the same of the teacher.
        parameters: of the student.
        teacher_parameters: of the teacher.
        flops: floating-point operations for one input, a multiply-add counted as two.
        teacher_flops: the same of the teacher.
        recipe_sha256: of the run's resolved recipe.
        versions: of what exported it, with hardware.
    """

    network: str
    method: str
    teacher: str
    data: str
    seed: int
    epochs: int
    accuracy: Mapping[str, float]
    teacher_accuracy: Mapping[str, float]
    images: Mapping[str, int]
    parameters: int
    teacher_parameters: int
    flops: int
    teacher_flops: int
    recipe_sha256: str
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A file of the export.

    Attributes:
        name: within the folder.
        bytes: its size.
        shown: what was checked of it.
        use: lines of Python that load it; none where it is not for loading.
    """

    name: str
    bytes: int
    shown: str
    use: Sequence[str] = ()


def card(
    facts: Facts,
    files: Sequence[Written],
    preprocessing: Preprocessing | None,
    int8: Mapping[str, Any] | None,
    shared: Sequence[str],
    library: str,
) -> str:
    """Markdown with the head that model hubs read.

    Args:
        facts: of the run.
        files: what was written.
        preprocessing: what images need, where it is known.
        int8: accuracies that were measured for the quantised file, by name.
        shared: the student's tensors that are the teacher's on purpose.
        library: whose network it is.
    """
    parts = [
        _head(library),
        f"# {_text(facts.network)}, distilled from {_text(facts.teacher)}\n",
        _provenance(facts),
        _worth(facts, int8),
        _preparation(preprocessing),
        _files(files),
        _proof(shared),
        f"Exported with {', '.join(f'{name} {_text(value)}' for name, value in facts.versions.items())}.\n",
    ]
    return "\n".join(parts)


def _head(library: str) -> str:
    lines = ["---", f"library_name: {library}", "pipeline_tag: image-classification", "tags:"]
    return "\n".join([*lines, "- knowledge-distillation", "- blockkd", "---\n"])


def _provenance(facts: Facts) -> str:
    rows = {
        "method": facts.method,
        "teacher": facts.teacher,
        "data": f"{facts.data}, {', '.join(f'{count:,} {part}' for part, count in facts.images.items())}",
        "seed": str(facts.seed),
        "epochs": str(facts.epochs),
        "recipe, SHA-256": facts.recipe_sha256,
    }
    return _table(("", ""), [(name, _text(value)) for name, value in rows.items()])


def _worth(facts: Facts, int8: Mapping[str, Any] | None) -> str:
    parts = list(dict.fromkeys([*facts.accuracy, *facts.teacher_accuracy]))
    rows = [
        ("teacher", facts.teacher_parameters, facts.teacher_flops, facts.teacher_accuracy),
        ("student", facts.parameters, facts.flops, facts.accuracy),
    ]
    head = ("network", "parameters", "FLOPs / image", *(f"{part} accuracy (%)" for part in parts))
    lines = [
        (name, f"{count:,}", f"{flops:,}", *(_percent(accuracy.get(part)) for part in parts))
        for name, count, flops, accuracy in rows
    ]
    said = [_table(head, lines), "Accuracy is that after the last epoch, as the run measured it.\n"]
    if int8 is not None:
        said.append(
            f"Of {int8['images']:,} {int8['part']} images, measured with onnxruntime here, `model.onnx` is right "
            f"on {_percent(int8['float_accuracy'])} %, `model.int8.onnx` ({int8['scheme']} quantisation) on "
            f"{_percent(int8['int8_accuracy'])} %.\n"
        )
    return "\n".join(said)


def _preparation(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None:
        return "The dataset does not say how raw inputs are made ready: the network takes what the dataset gave it.\n"
    height, width = preprocessing.size
    fitted = ""
    if preprocessing.resize_side is not None:
        fitted = (
            f"scale the shorter side to {preprocessing.resize_side} pixels (bilinear, antialiased), cut out the middle "
            f"{height}×{width}, "
        )
    labels = preprocessing.labels
    shown = ", ".join(map(_text, labels[:10])) + (", ..." if len(labels) > 10 else "")
    return (
        f"Images are {'grey' if preprocessing.channels == 1 else 'RGB'}, {height}×{width}: {fitted}multiply by "
        f"{preprocessing.rescale_factor:.10g}, subtract {list(preprocessing.mean)}, divide by "
        f"{list(preprocessing.std)} (`preprocessing.json`). "
        + (f"{len(labels)} classes: {shown}.\n" if labels else "\n")
    )


def _files(files: Sequence[Written]) -> str:
    lines = [(f"`{file.name}`", f"{file.bytes:,}", file.shown) for file in files]
    uses = [line for file in files for line in file.use]
    code = ["```python", *uses, "```\n"] if uses else []
    return "\n".join([_table(("file", "bytes", "checked"), lines), *code])


def _proof(shared: Sequence[str]) -> str:
    said = (
        "Every file was read back when it was written: each tensor in it is one of the student's, bit for bit (in a "
        "quantised file, but for rounding), and there is room for no others. "
    )
    if not shared:
        return said + "None of them is one of the teacher's.\n"
    return said + f"Of the teacher's, the method deploys these on purpose: {', '.join(map(_text, shared))}.\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _text(value: str) -> str:
    """On one line, and nothing in it that a table or a page would obey."""
    plain = "".join(char for char in " ".join(str(value).split()) if char.isprintable())
    return plain.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
