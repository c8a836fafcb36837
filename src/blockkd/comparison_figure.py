"""A comparison → a figure: what each method reaches, and what it costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blockkd.comparison import Comparison, Spread, Summary
from blockkd.report import TEACHER_NAME, by_method, widened
from blockkd.runs import Row
from blockkd.scores import metric_of, score, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHOD, REFERENCE, QUIET = "C0", "C1", "0.45"  # blue and orange: told apart by everybody
ROW_HEIGHT = 0.3  # inches for each method
LEAST_HEIGHT = 2.8  # inches of the axes
AROUND = 1.5  # inches for title, ticks and legend
LABEL_HEIGHT = 0.19  # inches from one label to the next
ASIDE = 0.15  # rows: dots lie so far below the middle of theirs, mean and interval above
WIDE = 10.0  # largest cost ÷ smallest from which on the axis is logarithmic


def comparison_figure(comparison: Comparison, rows: Sequence[Row], path: Path) -> None:
    """Write the figure of ``draw_comparison`` as a PNG file.

    Args:
        comparison: of ``rows``.
        rows: one for each trained network; see ``blockkd.comparison``.
        path: PNG file to write.

    Raises:
        ValueError: there is no student to show.
    """
    draw_comparison(comparison, rows).savefig(path, dpi=150, format="png")


def draw_comparison(comparison: Comparison, rows: Sequence[Row]) -> "Figure":
    """Test accuracy of each network and method; beside it, accuracy against the cost of training.

    Left: every network a dot, the mean with its 95 % confidence interval, the baseline's mean as a line, published
    numbers as hollow diamonds. Right: mean accuracy with the same interval, against the FLOPs of a training step in
    units of the baseline's, or against seconds (with their standard deviation) where these are not known for all.

    Args:
        comparison: of ``rows``.
        rows: one for each trained network; see ``blockkd.comparison``.

    Raises:
        ValueError: there is no student to show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    students = [summary for summary in comparison if summary.method != TEACHER_NAME]
    if not students:
        raise ValueError("there is no method to draw; the comparison holds no trained student")
    height = max(LEAST_HEIGHT, ROW_HEIGHT * len(students))
    drawing = Figure(figsize=(12, height + AROUND), layout="constrained")
    FigureCanvasAgg(drawing)
    accuracy, cost = drawing.subplots(1, 2, width_ratios=(1.15, 1))
    teacher = next((summary for summary in comparison if summary.method == TEACHER_NAME), None)
    _draw_accuracy(accuracy, students, rows, comparison.baseline, teacher)
    _draw_cost(cost, students, comparison.baseline, height, title_of(comparison.metric))
    accuracy.grid(axis="x", alpha=0.3)
    cost.grid(alpha=0.3)
    for axes in (accuracy, cost):
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return drawing


def spaced(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels: near the wanted ones, in their order, ``gap`` apart, and between ``low`` and ``high``.

    Where they cannot all have the gap, they are spread evenly. Labels that push each other move apart together, so
    that their centre stays where it was wanted.
    """
    count = len(places)
    gap = min(gap, (high - low) / max(count - 1, 1))
    order = sorted(range(count), key=lambda i: (places[i], i))
    groups: list[tuple[float, int]] = []  # (centre, how many); neighbours that would overlap become one
    for i in order:
        group = _inside(places[i], 1, gap, low, high)
        while groups and group[0] - groups[-1][0] < gap * (group[1] + groups[-1][1]) / 2:
            centre, size = groups.pop()
            merged = (centre * size + group[0] * group[1]) / (size + group[1])
            group = _inside(merged, size + group[1], gap, low, high)
        groups.append(group)
    spread_out = [centre + gap * (k - (size - 1) / 2) for centre, size in groups for k in range(size)]
    result = [0.0] * count
    for i, place in zip(order, spread_out, strict=True):
        result[i] = place
    return result


def _inside(centre: float, size: int, gap: float, low: float, high: float) -> tuple[float, int]:
    half = gap * (size - 1) / 2
    return min(max(centre, low + half), high - half), size


def _draw_accuracy(
    axes: "Axes", students: Sequence[Summary], rows: Sequence[Row], baseline: str | None, teacher: Summary | None
) -> None:
    groups = by_method(rows)
    for place, summary in enumerate(students):
        colour = _colour(summary, baseline)
        dots = [100 * score(row) for row in groups[summary.method]]
        axes.plot(dots, [place + ASIDE] * len(dots), "o", color=colour, alpha=0.5, markersize=5, markeredgewidth=0)
        mean, above = 100 * summary.last.mean, place - ASIDE
        axes.errorbar(mean, above, xerr=_interval(summary.last), color=colour, capsize=2, linewidth=1.4)
        axes.plot(mean, above, "|", color=colour, markersize=8, markeredgewidth=2)
        if summary.published is not None:
            axes.plot(
                summary.published.accuracy, place, "D", markerfacecolor="none", markeredgecolor="0.2", markersize=6
            )
        if summary.method == baseline:
            axes.axvline(mean, color=colour, linewidth=1, linestyle="--", zorder=0)
    axes.set_xlim(widened(axes.get_xlim()))
    also = "" if teacher is None else f"; the teacher's: {100 * teacher.last.mean:.2f}"
    axes.set(
        xlabel=f"test {title_of(metric_of(rows))} after the last epoch (%){also}",
        title="each network, mean and 95 % interval",
    )
    axes.set_yticks(range(len(students)), [summary.method for summary in students])
    axes.set_ylim(len(students) - 0.4, -0.6)  # the first on top, as in the table
    _draw_legend(axes, students, baseline)


def _draw_legend(axes: "Axes", students: Sequence[Summary], baseline: str | None) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if any(summary.method == baseline for summary in students):
        handles.append(Line2D([], [], color=REFERENCE, linestyle="--", label=f"mean of {baseline}"))
    if any(summary.published is not None for summary in students):
        hollow = Line2D([], [], marker="D", linestyle="none", markerfacecolor="none", markeredgecolor="0.2")
        hollow.set_label("published, not ours")
        handles.append(hollow)
    if handles:  # beneath the axis, where it hides no dot
        axes.figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False)


def _draw_cost(axes: "Axes", students: Sequence[Summary], baseline: str | None, height: float, title: str) -> None:
    by_flops = all(summary.relative_flops is not None for summary in students)
    costs = [summary.relative_flops or 0.0 if by_flops else summary.seconds.mean for summary in students]
    for summary, x in zip(students, costs, strict=True):
        colour = _colour(summary, baseline)
        deviation = None if by_flops else summary.seconds.deviation
        mean, interval = 100 * summary.last.mean, _interval(summary.last)
        axes.errorbar(x, mean, interval, deviation, color=colour, alpha=0.5, linewidth=1, capsize=2)
        axes.plot(x, mean, "o", color=colour, markersize=5, zorder=4 if summary.method == baseline else 3)
    cost_axis(axes, costs)
    flops = f"FLOPs of a training step, in units of {baseline}'s"
    axes.set(
        xlabel=flops if by_flops else "training seconds (± standard deviation)",
        ylabel=f"test {title} (%)",
        title=f"{title} against cost",
    )
    axes.set_ylim(widened(axes.get_ylim()))
    name_beside(axes, students, costs, LABEL_HEIGHT / height)


def cost_axis(axes: "Axes", costs: Sequence[float]) -> None:
    """Show costs along x on a scale of ratios where they lie far apart."""
    from matplotlib.ticker import LogLocator

    if min(costs) > 0 and max(costs) / min(costs) > WIDE:
        axes.set_xscale("log", subs=[])  # ticks at 1, 2 and 5, each with its number; none between
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")


def name_beside(
    axes: "Axes",
    students: Sequence[Summary],
    costs: Sequence[float],
    gap: float,
    left: float = 1.06,
    size: int = 9,
    colour: str = QUIET,
) -> None:
    """Names in a column beside the axes, each with a thin line to its point: so they never lie on each other.

    Args:
        axes: with accuracy in % along y, whose limits stay from now on.
        students: whose points have names.
        costs: where these points lie along x.
        gap: from one name to the next, as a share of the axes' height.
        left: where the column begins, in units of the axes' width.
        size: of the letters, in points.
        colour: of the lines.
    """
    low, high = axes.get_ylim()
    heights = [(100 * summary.last.mean - low) / (high - low) for summary in students]
    for summary, x, place in zip(students, costs, spaced(heights, gap, low=0.0, high=1.0), strict=True):
        axes.annotate(
            summary.method,
            xy=(x, 100 * summary.last.mean),
            xytext=(left, place),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkB": 3},
        )


def _colour(summary: Summary, baseline: str | None) -> str:
    return REFERENCE if summary.method == baseline else METHOD


def _interval(value: Spread) -> float | None:
    return None if value.half_width is None else 100 * value.half_width
