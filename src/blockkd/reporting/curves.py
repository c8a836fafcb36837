"""Accuracy and losses while training, of every method and seed, and the moment at which ``L_cross`` starts."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from blockkd.report import by_method, share_limits
from blockkd.reporting.judging import IMAGES, Judged
from blockkd.reporting.sections import Section
from blockkd.reporting.style import INK, PAPER, Picture, colours_of, dashes_of, is_teacher, legend_below, panel
from blockkd.runs import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADE = 10.0
PARTS = {"task": "task", "distill": "distillation", "cross": "cross"}
LEAD = (
    "Every thin line is one network, the thick one is the mean over the seeds of a method. Methods of one run see the"
)


def curves_section(metrics: Sequence[Row], cross_from: Mapping[str, int], judged: Judged = IMAGES) -> Section:
    """Score, loss, and the parts of the losses of methods with stones, over the epochs.

    Args:
        metrics: one row per network and epoch, with ``method``, ``seed``, ``epoch`` from 0, ``val/accuracy`` and
            ``val/loss`` (as ``test/...`` where that is watched) and ``train/<part>/<learner>``.
        cross_from: by method, the epoch, from 0, from which on ``L_cross`` counts.
        judged: by what the networks are judged; stands in the place of ``accuracy``.
    """
    title = "While training"
    if not metrics:
        missing = "No epoch is finished yet, so there are no curves; train on with --resume and report again."
        return Section("curves", title, "", missing=[missing])
    part = "test" if any(f"test/{judged.metric}" in row for row in metrics) else "validation"
    loss = "cross-entropy (nats)" if judged.has_classes else "squared error"
    pictures = [
        _picture(judged.metric, f"{part} {judged.title} (%)", metrics, judged.watched, cross_from),
        _picture("loss", f"{part} {loss}", metrics, _loss, cross_from, logarithmic=True),
    ]
    pictures += [_parts(method, rows, cross_from.get(method)) for method, rows in by_method(metrics).items()
                 if any(name.startswith("train/task/stone_") for row in rows for name in row)]  # fmt: skip
    return Section("curves", title, f"{LEAD} same {judged.sample}s in the same order.", pictures)


def by_epoch(rows: Sequence[Row], value: Callable[[Row], float | None]) -> dict[int, list[float]]:
    """The values of all seeds after each epoch, counted from 1; epochs without any are left out."""
    found: dict[int, list[float]] = {}
    for row in rows:
        number = value(row)
        if number is not None:
            found.setdefault(int(row["epoch"]) + 1, []).append(number)
    return dict(sorted(found.items()))


def whole_epochs(axes: "Axes") -> None:
    """Ticks along x at whole numbers only: of a few epochs the rest would be fractions."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def mark_cross(axes: "Axes", epochs: Sequence[int]) -> None:
    """A line for each epoch, from 0, in which ``L_cross`` starts, if training has come so far."""
    last = axes.dataLim.x1
    for epoch in sorted({epoch for epoch in epochs if epoch + 1 <= last}):
        axes.axvline(epoch + 1, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
        axes.annotate(
            "L_cross starts",
            (epoch + 1, 0.03),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 0),
            textcoords="offset points",
            rotation=90,
            fontsize=8,
            ha="right",
            va="bottom",
            bbox={"boxstyle": "square,pad=0.15", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.85},
        )


def _by_ratios(axes: "Axes") -> None:
    """A logarithmic scale along y where the values span so much that it has numbers at its ticks."""
    low, high = axes.dataLim.intervaly
    if 0 < low < high and high / low > DECADE:  # without a line they are infinite
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


def _picture(
    name: str,
    label: str,
    metrics: Sequence[Row],
    value: Callable[[Row], float | None],
    cross_from: Mapping[str, int],
    logarithmic: bool = False,
) -> Picture:
    groups = by_method(metrics)
    figure, axes = panel()
    for method, rows in groups.items():
        _lines(axes, rows, value, method, list(groups))
    axes.set(xlabel="epoch", ylabel=label)
    whole_epochs(axes)
    if logarithmic:
        _by_ratios(axes)
    else:
        axes.set_ylim(share_limits([number for row in metrics if (number := value(row)) is not None]))
    mark_cross(axes, list(cross_from.values()))
    legend_below(axes)
    return Picture(name, f"{label[0].upper()}{label[1:]} after each epoch.", figure)


def _lines(
    axes: "Axes", rows: Sequence[Row], value: Callable[[Row], float | None], method: str, methods: Sequence[str]
) -> None:
    colour, dashes = colours_of(methods)[method], dashes_of(methods)[method]
    seeds = {int(row["seed"]) for row in rows}
    for seed in sorted(seeds) if len(seeds) > 1 else ():
        own = by_epoch([row for row in rows if int(row["seed"]) == seed], value)
        axes.plot(list(own), [one for (one,) in own.values()], color=colour, linewidth=0.7, alpha=0.45)
    means = {epoch: statistics.fmean(values) for epoch, values in by_epoch(rows, value).items()}
    if not means:
        return
    width = 1.3 if is_teacher(method) else 1.8
    single = "o" if len(means) == 1 else ""  # a line of one point is none
    (line,) = axes.plot(list(means), list(means.values()), label=method, color=colour, linewidth=width)
    line.set(linestyle=dashes, marker=single)


def _parts(method: str, rows: Sequence[Row], cross_from: int | None) -> Picture:
    """Each part of the loss, summed up over student and stones as it is weighed."""
    figure, axes = panel()
    names = list(PARTS.values())
    for part, name in PARTS.items():
        _lines(axes, rows, lambda row, part=part: _sum(row, f"train/{part}/"), name, names)  # type: ignore[misc]
    axes.set(xlabel="epoch", ylabel="weighted loss while training", title=method)
    whole_epochs(axes)
    _by_ratios(axes)
    mark_cross(axes, [] if cross_from is None else [cross_from])
    legend_below(axes, columns=3)
    caption = f"The parts of the loss of {method}: each summed up over student and stones, times its weight."
    return Picture(f"parts-{file_name(method)}", caption, figure)


def file_name(label: str) -> str:
    """A label as part of a file's name."""
    return "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "-" for char in label).strip("-")


def _loss(row: Row) -> float | None:
    found = row.get("val/loss", row.get("test/loss"))
    return None if found is None else float(found)


def _sum(row: Row, start: str) -> float | None:
    values = [float(value) for name, value in row.items() if name.startswith(start)]
    return sum(values) if values and sum(values) > 0 else None
