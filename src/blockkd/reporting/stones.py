"""The stepping stones while training: where along the depth knowledge gets lost."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockkd.report import by_method, mean_and_deviation, share_limits
from blockkd.reporting.curves import by_epoch, file_name, mark_cross, whole_epochs
from blockkd.reporting.judging import IMAGES, Judged
from blockkd.reporting.sections import Section, Table
from blockkd.reporting.style import BLUE, INK, VERMILION, Picture, colours_of, dashes_of, legend_below, panel
from blockkd.runs import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Along the depth"
LEAD = (
    "Stone N_i is made of the student's first i blocks, a connector, and the rest of the teacher: N_0 would be the "
    "teacher itself. The less a stone agrees with the teacher, the less of what the rest of the teacher needs has come "
    "through the student's blocks up to there and through the connector, which learns as well. By default a stone "
    "weighs half as much in the loss as the next, so early ones are trained less."
)
_STONE = re.compile(r"(val|test)/stone_(\d+)/accuracy")


@dataclass(frozen=True)
class Place:
    """A network along the depth, after the last epoch: the teacher, a stone, or the student.

    Attributes:
        name: what it is called.
        accuracy: in %, of each seed.
        agreement: with the teacher, in %, of each seed.
    """

    name: str
    accuracy: Sequence[float]
    agreement: Sequence[float]


def stones_section(
    metrics: Sequence[Row], with_stones: Sequence[str], cross_from: Mapping[str, int], judged: Judged = IMAGES
) -> Section:
    """The stones' accuracy and agreement over the epochs, and after the last one along the depth.

    Args:
        metrics: one row per network and epoch; with ``watch_stones``, the stones' as ``blockkd.watching`` names them.
        with_stones: methods that have stones.
        cross_from: by method, the epoch, from 0, from which on ``L_cross`` counts.
        judged: what the networks look at; with a regression's numbers nobody can agree.
    """
    if not judged.has_classes:
        return Section("stones", TITLE, "", missing=[judged.needs_classes("Agreement of stones with the teacher")])
    watched = {method: rows for method, rows in by_method(metrics).items() if method in with_stones and _stones(rows)}
    if not watched:
        missing = (
            "The stones were not watched; train with --watch_stones true"
            + (", or with the recipe digits/ablation." if judged.sample == "image" else ".")
            if with_stones
            else "No method of these runs has stones; Block-KD has: blockkd distill --watch_stones true."
        )
        return Section("stones", TITLE, "", missing=[missing])
    pictures, tables, said = [], [], []
    for method, rows in watched.items():
        places = along_depth(rows)
        said.append(f"{method}: {bottleneck(places, judged)}")
        pictures += [_depth(method, places, judged), *_over_time(method, rows, cross_from.get(method))]
        tables.append(_table(method, places, _part(rows), judged))
    return Section("stones", TITLE, LEAD, pictures, tables, points=said)


def along_depth(rows: Sequence[Row]) -> list[Place]:
    """Teacher, stones in order and student after the last epoch of each seed.

    Args:
        rows: of one method, with the stones' shares.
    """
    part = _part(rows)
    last = list({int(row["seed"]): row for row in sorted(rows, key=lambda row: int(row["epoch"]))}.values())
    last = [row for row in last if f"{part}/teacher/accuracy" in row]

    def of(name: str) -> list[float]:
        return [100 * float(row[f"{part}/{name}"]) for row in last]

    stones = [Place(f"N_{i}", of(f"stone_{i}/accuracy"), of(f"stone_{i}/agrees_teacher")) for i in _stones(rows)]
    teacher = Place("teacher", of("teacher/accuracy"), [100.0] * len(last))
    student = Place("student", of(_students_accuracy(rows, part)), of("student/agrees_teacher"))
    return [teacher, *stones, student]


def bottleneck(places: Sequence[Place], judged: Judged = IMAGES) -> str:
    """Where along the depth least of the teacher is left, in a sentence."""
    learners = places[1:]
    worst = min(learners, key=lambda place: statistics.fmean(place.agreement))
    share = mean_and_deviation(worst.agreement, 1)
    if worst.name == "student":
        return (
            f"the bottleneck is the student's classifier: every stone agrees with the teacher more than its {share} %."
        )
    block = worst.name.removeprefix("N_")
    return (
        f"the bottleneck is block {block}: {worst.name}, which goes on in the teacher behind it, agrees with the "
        f"teacher least, on {share} % of the {judged.sample}s."
    )


def _stones(rows: Sequence[Row]) -> list[int]:
    return sorted({int(found[2]) for row in rows for name in row if (found := _STONE.fullmatch(name))})


def _students_accuracy(rows: Sequence[Row], part: str) -> str:
    """Its column: beside the stones', or where older runs have it; not all tasks are judged by it."""
    own = "student/accuracy"
    return own if any(f"{part}/{own}" in row for row in rows) else "accuracy"


def _part(rows: Sequence[Row]) -> str:
    return next(found[1] for row in rows for name in row if (found := _STONE.fullmatch(name)))


def _depth(method: str, places: Sequence[Place], judged: Judged) -> Picture:
    figure, axes = panel()
    for name, colour, marker, values in (
        ("accuracy", BLUE, "o", [place.accuracy for place in places]),
        ("agreement with the teacher", VERMILION, "s", [place.agreement for place in places]),
    ):
        axes.plot([statistics.fmean(of) for of in values], color=colour, marker=marker, markersize=5, label=name)
        for place, of in enumerate(values):
            axes.plot([place] * len(of), of, marker, color=colour, alpha=0.35, markersize=3.5, markeredgewidth=0)
    axes.set_xticks(range(len(places)), [place.name for place in places])
    axes.set(ylabel=f"share of {judged.sample}s (%)", title=method)
    axes.set_ylim(share_limits([one for place in places for of in (place.accuracy, place.agreement) for one in of]))
    legend_below(axes)
    caption = f"{method} after the last epoch: from the teacher, block by block, to the student. Small: each seed."
    return Picture(f"depth-{file_name(method)}", caption, figure)


def _over_time(method: str, rows: Sequence[Row], cross_from: int | None) -> list[Picture]:
    part, stones = _part(rows), _stones(rows)
    names = {f"N_{i}": f"stone_{i}" for i in stones}
    found = []
    for key, said, own in (
        ("accuracy", "accuracy", {"student": _students_accuracy(rows, part), "teacher": "teacher/accuracy"}),
        ("agrees_teacher", "agreement with the teacher", {"student": "student/agrees_teacher"}),
        ("agrees_student", "agreement with the student", {}),
    ):
        columns = {name: f"{part}/{stone}/{key}" for name, stone in names.items()}
        columns |= {name: f"{part}/{column}" for name, column in own.items()}
        found.append(
            Picture(
                f"stones-{key.replace('_', '-')}-{file_name(method)}",
                f"{method}: {said} of each stone after each epoch, mean over the seeds.",
                _lines(method, rows, columns, f"{said} (%)", cross_from),
            )
        )
    return found


def _lines(
    method: str, rows: Sequence[Row], columns: Mapping[str, str], label: str, cross_from: int | None
) -> "Figure":
    figure, axes = panel()
    stones = [name for name in columns if name.startswith("N_")]
    colours, dashes = colours_of(stones), dashes_of(stones)
    drawn: list[float] = []
    for name, column in columns.items():
        values = by_epoch(rows, lambda row, column=column: 100 * float(row[column]) if column in row else None)  # type: ignore[misc]
        means = [statistics.fmean(of) for of in values.values()]
        dash = dashes.get(name, "-" if name == "student" else (0, (2, 2)))
        (line,) = axes.plot(list(values), means, color=colours.get(name, INK), linewidth=1.5, label=name)
        line.set(linestyle=dash, marker="o" if len(means) == 1 else "")
        drawn += means
    axes.set(xlabel="epoch", ylabel=label, title=method)
    whole_epochs(axes)
    axes.set_ylim(share_limits(drawn))
    mark_cross(axes, [] if cross_from is None else [cross_from])
    legend_below(axes, columns=3)
    return figure


def _table(method: str, places: Sequence[Place], part: str, judged: Judged) -> Table:
    rows, before = [], None
    for place in places:
        agreement = statistics.fmean(place.agreement)
        change = "" if before is None else f"{agreement - before:+.1f}"
        rows.append((place.name, f"{statistics.fmean(place.accuracy):.1f}", f"{agreement:.1f}", change))
        before = agreement
    whole = "validation" if part == "val" else "test"
    seeds = "1 seed" if len(places[0].accuracy) == 1 else f"{len(places[0].accuracy)} seeds"
    caption = f"{method}: shares of the {whole} {judged.sample}s in % after the last epoch, means over {seeds}"
    return Table(("", "accuracy", "agrees with teacher", "to the one before"), rows, caption)
