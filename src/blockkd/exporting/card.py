"""The model card: where a student comes from, what it is worth, what it costs, and how it is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockkd.data.preprocessing import Preprocessing
from blockkd.exporting.bare import Shared
from blockkd.exporting.preparation import Preparation
from blockkd.scores import title_of
from blockkd.text.preprocessing import TextPreprocessing

Scores = Mapping[str, Mapping[str, float]]  # by part of the data and metric, 0 … 1; correlations -1 … 1


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
        scores: after the last epoch, by part of the data and metric.
        teacher_scores: the same of the teacher.
        samples: how many there are, by part of the data.
        parameters: of the student.
        teacher_parameters: of the teacher.
        flops: floating-point operations for one input, a multiply-add counted as two.
        teacher_flops: the same of the teacher.
        recipe_sha256: of the run's resolved recipe.
        sample: what one input is called.
        versions: of what exported it, with hardware.
    """

    network: str
    method: str
    teacher: str
    data: str
    seed: int
    epochs: int
    scores: Scores
    teacher_scores: Scores
    samples: Mapping[str, int]
    parameters: int
    teacher_parameters: int
    flops: int
    teacher_flops: int
    recipe_sha256: str
    sample: str = "image"
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
    preprocessing: Preparation | None,
    int8: Mapping[str, Any] | None,
    shared: Shared,
    library: str,
) -> str:
    """Markdown with the head that model hubs read.

    Args:
        facts: of the run.
        files: what was written.
        preprocessing: what raw inputs need, where it is known.
        int8: scores that were measured for the quantised file, by name.
        shared: the student's tensors that are the teacher's, where they may be.
        library: whose network it is.
    """
    parts = [
        _head(library, "text" if isinstance(preprocessing, TextPreprocessing) else "image"),
        f"# {_text(facts.network)}, distilled from {_text(facts.teacher)}\n",
        _provenance(facts),
        _worth(facts, int8),
        _preparation(preprocessing),
        _files(files),
        _proof(shared),
        f"Exported with {', '.join(f'{name} {_text(value)}' for name, value in facts.versions.items())}.\n",
    ]
    return "\n".join(parts)


def _head(library: str, kind: str) -> str:
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {kind}-classification", "tags:"]
    return "\n".join([*lines, "- knowledge-distillation", "- blockkd", "---\n"])


def _provenance(facts: Facts) -> str:
    sizes = ", ".join(f"{count:,} {part}" for part, count in facts.samples.items())
    rows = {
        "method": facts.method,
        "teacher": facts.teacher,
        "data": f"{facts.data}, {sizes} {facts.sample}s",
        "seed": str(facts.seed),
        "epochs": str(facts.epochs),
        "recipe, SHA-256": facts.recipe_sha256,
    }
    return _table(("", ""), [(name, _text(value)) for name, value in rows.items()])


def _worth(facts: Facts, int8: Mapping[str, Any] | None) -> str:
    columns = list(dict.fromkeys((part, metric) for of in (facts.scores, facts.teacher_scores) for part in of
                                 for metric in of[part]))  # fmt: skip
    rows = [
        ("teacher", facts.teacher_parameters, facts.teacher_flops, facts.teacher_scores),
        ("student", facts.parameters, facts.flops, facts.scores),
    ]
    titles = [f"{part} {title_of(metric)} (%)" for part, metric in columns]
    lines = [
        (name, f"{count:,}", f"{flops:,}", *(_percent(scores.get(part, {}).get(metric)) for part, metric in columns))
        for name, count, flops, scores in rows
    ]
    table = _table(("network", "parameters", f"FLOPs / {facts.sample}", *titles), lines)
    said = [table, "Scores are those after the last epoch, as the run measured them.\n"]
    if int8 is not None:
        both = [
            f"{title_of(metric)} {_percent(whole)} % for `model.onnx`, {_percent(int8['int8'][metric])} % for "
            f"`model.int8.onnx` ({int8['scheme']} quantisation)"
            for metric, whole in int8["float"].items()
        ]
        said.append(
            f"On the {int8['samples']:,} {int8['part']} {int8['sample']}s, with onnxruntime: {'; '.join(both)}.\n"
        )
    return "\n".join(said)


def _preparation(preprocessing: Preparation | None) -> str:
    if preprocessing is None:
        return "The dataset does not say how raw inputs are made ready: the network takes what the dataset gave it.\n"
    text = isinstance(preprocessing, TextPreprocessing)
    said = _sentences(preprocessing) if isinstance(preprocessing, TextPreprocessing) else _pixels(preprocessing)
    labels = preprocessing.labels
    shown = ", ".join(map(_text, labels[:10])) + (", ..." if len(labels) > 10 else "")
    classes = f" {len(labels)} classes: {shown}." if labels else " One number is told of each." if text else ""
    return f"{said}{classes}\n"


def _pixels(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.size
    fitted = ""
    if preprocessing.resize_side is not None:
        fitted = (
            f"scale the shorter side to {preprocessing.resize_side} pixels (bilinear, antialiased), cut out the middle "
            f"{height}×{width}, "
        )
    return (
        f"Images are {'grey' if preprocessing.channels == 1 else 'RGB'}, {height}×{width}: {fitted}multiply by "
        f"{preprocessing.rescale_factor:.10g}, subtract {list(preprocessing.mean)}, divide by "
        f"{list(preprocessing.std)} (`preprocessing.json`)."
    )


def _sentences(preprocessing: TextPreprocessing) -> str:
    pairs = f"pairs of {' and '.join(map(_text, preprocessing.columns))}" if len(preprocessing.columns) > 1 else ""
    tensors = ", ".join(f"`{_text(name)}`" for name in preprocessing.inputs)
    return (
        f"It reads {pairs or 'sentences'} as the tokenizer in `tokenizer` writes them (the one that its teacher reads "
        f"with), cut at {preprocessing.max_length} tokens, and takes {tensors}, whole numbers (batch, length), of any "
        'batch and length: `blockkd.exporting.load_preprocessing(".")(["a sentence"])` makes them '
        "(`preprocessing.json`)."
    )


def _files(files: Sequence[Written]) -> str:
    lines = [(f"`{file.name}`", f"{file.bytes:,}", file.shown) for file in files]
    uses = [line for file in files for line in file.use]
    code = ["```python", *uses, "```\n"] if uses else []
    return "\n".join([_table(("file", "bytes", "checked"), lines), *code])


def _proof(shared: Shared) -> str:
    said = (
        "Every file was read back when it was written: each tensor in it is one of the student's, bit for bit (in a "
        "quantised file, but for rounding), and there is room for no others. "
    )
    if not shared.deployed and not shared.started:
        return said + "None of them is one of the teacher's.\n"
    if shared.deployed:
        said += f"Of the teacher's, the method deploys these on purpose: {_list(shared.deployed)}.\n"
    if shared.started:
        said += (
            "The student started from a copy of parts of its teacher, and these have stayed as they were: "
            f"{_list(shared.started)}. No other is one of the teacher's.\n"
        )
    return said


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(_text, names))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _text(value: str) -> str:
    """On one line, and nothing in it that a table or a page would obey."""
    plain = "".join(char for char in " ".join(str(value).split()) if char.isprintable())
    return plain.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
