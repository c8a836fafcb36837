"""Runs → the sections of their page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from blockkd import costs
from blockkd.baselines.logits import KD, CrossEntropy
from blockkd.block_kd import BlockKD
from blockkd.blocks import Blocks, PartitionError
from blockkd.blockwise import BlockwiseDistiller
from blockkd.calling import Inputs, count, image_shape
from blockkd.commands.checks import build_method, build_network, build_student
from blockkd.commands.errors import printable, user_input
from blockkd.commands.jobs import COST_IMAGES
from blockkd.commands.recipe import DistillRecipe
from blockkd.commands.report_runs import Line, StoredRun, labels_of
from blockkd.comparison import summarise
from blockkd.data.images import ImageData
from blockkd.partitioning import cut_pair, survey
from blockkd.report import TEACHER_NAME
from blockkd.reporting.calibration import calibration_section
from blockkd.reporting.classes import classes_section, png_of
from blockkd.reporting.costs import ablation_section, results_section
from blockkd.reporting.curves import curves_section
from blockkd.reporting.diagram import diagram_section
from blockkd.reporting.judging import Judged
from blockkd.reporting.measuring import FEATURE_SAMPLES, Pixels, all_logits, evenly, features_of
from blockkd.reporting.sections import Example, Section
from blockkd.reporting.similarity import similarity_section
from blockkd.reporting.stones import stones_section
from blockkd.runs import Job, Row
from blockkd.text.glue import Glue

COMPARED = 6  # networks whose features are compared, the teacher among them
LONGEST = 400  # letters of a sentence


@dataclass(frozen=True)
class Network:
    """A trained network of a run.

    Attributes:
        label: what its method is called on the page.
        job: which it is.
        network: with its weights.
    """

    label: str
    job: Job
    network: nn.Module


def all_sections(runs: Sequence[StoredRun], most: int) -> Iterator[Section]:
    """The whole page in order: tables of the runs first, then what their networks say of the test part.

    Args:
        runs: of the same data.
        most: samples that the networks are measured on.

    Raises:
        InvalidInputError: a run's tables or networks cannot be used.
    """
    metrics: list[Row] = []
    results: list[Row] = []
    lines: dict[str, Line] = {}
    for stored in runs:
        labels = labels_of(runs, stored)
        metrics += [row | {"method": labels[str(row["method"])]} for row in stored.folder.metrics(stored.jobs)]
        results += [row | {"method": labels[str(row["method"])]} for row in stored.results]
        lines |= {labels[method]: line for method, line in stored.lines.items()}
    with_stones = [label for label, line in lines.items() if issubclass(line.kind, BlockKD)]
    cross_from = {label: line.cross_from for label, line in lines.items() if line.cross_from is not None}
    main = next(iter(with_stones or lines), None)
    with user_input("the results cannot be put together"):
        comparison = summarise(results)
    judged = _judged(runs[0].recipe.data)
    yield results_section(comparison, results, len(runs[0].recipe.data.parts.test), judged)
    yield ablation_section(results, judged)
    yield curves_section(metrics, cross_from, judged)
    yield stones_section(metrics, with_stones, cross_from, judged)
    yield _diagram(main, lines, judged)
    yield from _measured(runs, lines, main, most, judged)


def _judged(data: ImageData) -> Judged:
    if not isinstance(data, Glue):
        return Judged(data.sample, data.metrics, inputs=f"one {data.sample}")
    batches = data.example(), data.example(min(data.batch_size, COST_IMAGES))  # as a run's costs are measured
    inputs = (f"one {data.sample} of {image_shape(batch)[1]} tokens" for batch in batches)
    return Judged(data.sample, data.metrics, bool(data.task.labels), *inputs)


def _diagram(main: str | None, lines: Mapping[str, Line], judged: Judged) -> Section:
    if main is None:
        missing = "There is no student: distil one from this teacher with blockkd distill --teacher.weights FILE."
        return Section("networks", "The networks", "", missing=[missing])
    line = lines[main]
    recipe, example = line.recipe, line.recipe.data.example()
    (teacher, student), pair = (_pair(recipe) for _ in range(2))
    distiller = build_method(line.factory, main, teacher, student, recipe.data)
    labels = recipe.data.parts.test.labels[: count(example)]
    kd_flops = costs.step_flops(KD(*pair), example, labels) // count(example)
    try:
        if isinstance(distiller, BlockwiseDistiller):
            theirs, ours = distiller.teacher_blocks, distiller.student_blocks
        else:
            surveys = survey(teacher, example), survey(student, example)
            points = cut_pair(*surveys)
            theirs, ours = surveys[0].cut(points[0], frozen=True), surveys[1].cut(points[1])
    except PartitionError as error:
        return Section("networks", "The networks", "", missing=[f"The networks cannot be cut into blocks: {error}"])
    return diagram_section(theirs, ours, example, distiller, kd_flops, main, judged)


def _pair(recipe: DistillRecipe) -> tuple[nn.Module, nn.Module]:
    teacher = build_network(recipe.teacher.network, TEACHER_NAME)
    return teacher, build_student(recipe, teacher)


def _measured(
    runs: Sequence[StoredRun], lines: Mapping[str, Line], main: str | None, most: int, judged: Judged
) -> Iterator[Section]:
    """What needs the networks themselves: calibration, classes, features."""
    data = runs[0].recipe.data
    indices = evenly(len(data.parts.test), most)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [
        Network(labels_of(runs, stored)[job.method], job, network)
        for stored in runs
        for job in stored.jobs
        if (network := stored.network(job)) is not None
    ]
    blocks, left_out = _cut(networks, data.example())
    logits: dict[str, dict[int, Tensor]] = {}
    for each, values in zip(networks, all_logits([n.network for n in networks], data, indices, device), strict=True):
        logits.setdefault(each.label, {})[each.job.seed] = values
    labels = data.parts.test.labels[indices].cpu()
    names = [printable(str(name)) for name in getattr(data, "class_names", ()) or range(data.num_classes)]
    seeds = {label: list(values.values()) for label, values in logits.items()}
    yield calibration_section(seeds, labels, judged=judged)
    yield _classes(logits, labels, names, lines, main, _shown(data, indices), judged)
    chosen = evenly(len(indices), FEATURE_SAMPLES)
    features = features_of(blocks, data, indices[chosen], device) if len(blocks) > 1 else {}
    yield similarity_section(features, TEACHER_NAME, labels[chosen], names, left_out, judged)


def _cut(networks: Sequence[Network], example: Inputs) -> tuple[dict[str, Blocks], list[str]]:
    """The first network of each label as blocks, and why some are left out."""
    firsts: dict[str, Network] = {}
    for each in sorted(networks, key=lambda each: each.label != TEACHER_NAME):
        firsts.setdefault(each.label, each)
    blocks: dict[str, Blocks] = {}
    left_out: list[str] = []
    for each in list(firsts.values())[:COMPARED]:
        try:
            found = survey(each.network, example)
            blocks[each.label] = found.cut(found.choose(), frozen=True)
        except PartitionError as error:
            left_out.append(f"{each.label} cannot be cut into blocks: {error}")
    if len(firsts) > COMPARED:
        left_out.append(f"The features of {len(firsts) - COMPARED} more networks are not shown: report fewer runs.")
    return blocks, left_out


def _shown(data: ImageData, indices: Tensor) -> Callable[[int, str], Example]:
    """How a sample of a number 0 … N - 1 is shown, with what is said of it: an image, or sentences as written."""
    if not isinstance(data, Glue):
        pixels = Pixels(data.parts.test, indices)
        return lambda number, said: Example(said, png_of(pixels(number)))

    def sentences(number: int, said: str) -> Example:
        found = data.test_sentences(int(indices[number]))
        return Example(said, sentences=[_short(printable(sentence)) for sentence in found])

    return sentences


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST - 1]}…"


def _classes(
    logits: Mapping[str, Mapping[int, Tensor]],
    labels: Tensor,
    names: Sequence[str],
    lines: Mapping[str, Line],
    main: str | None,
    show: Callable[[int, str], Example],
    judged: Judged,
) -> Section:
    """Against the student that was trained on labels alone, or else against the teacher."""
    if not judged.has_classes:
        return Section("classes", "Class by class", "", missing=[judged.needs_classes("A comparison class by class")])
    alone = [label for label, line in lines.items() if issubclass(line.kind, CrossEntropy) and label in logits]
    reference = next((label for label in alone if label != main), TEACHER_NAME)
    if main is None or main not in logits or reference not in logits:
        missing = "Classes are compared once a student, and the cross-entropy student or the teacher, are trained."
        return Section("classes", "Class by class", "", missing=[missing])
    section = classes_section(main, reference, logits, labels, names, show, judged)
    if reference != TEACHER_NAME:
        return section
    said = (
        "No student was trained on labels alone, so the teacher is compared with. Train one by the same recipe with "
        "--method CrossEntropy, and report both runs together."
    )
    return replace(section, missing=[said])
