"""Results → the table on the terminal and the figure."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from blockkd.runs import Row
from blockkd.scores import ACCURACY, metric_of, score, title_of

TEACHER_NAME = "teacher"
LOOK = 12.0  # how many points of accuracy below the median the curves show
LEAST_SPAN = 5.0  # points of accuracy that an axis spans at least, so that small differences look small
HIGHEST = 100.5  # end of an axis of shares in %: what lies at 100 is seen whole


def results_table(results: Sequence[Row], test_images: int, sample: str = "image") -> Table:
    """One row per method, the teacher first; mean ± sample standard deviation over the seeds.

    Args:
        results: one row per job: ``method``, ``seed``, ``test_accuracy`` (0 … 1, after the last epoch; where ``metric``
            names another metric, that one), ``parameters``, ``flops_per_image``, ``seconds``.
        test_images: how many images the accuracy was measured on.
        sample: what one of them is called.
    """
    title = title_of(metric_of(results))
    table = Table(
        caption=f"{title} after the last epoch, in %, on {test_images} test {sample}s; "
        "n: networks trained, mean ± standard deviation where n > 1"
    )
    table.add_column("method")
    for column in (f"test {title}", "n", "parameters", f"FLOPs / {sample}", "training seconds"):
        table.add_column(column, justify="right")
    for method, rows in by_method(results).items():
        table.add_row(
            method,
            mean_and_deviation([100 * score(row) for row in rows], 2),
            str(len(rows)),
            f"{int(rows[0]['parameters']):,}",
            f"{int(rows[0]['flops_per_image']):,}",
            mean_and_deviation([float(row["seconds"]) for row in rows], 1),
        )
    return table


def evaluation_table(
    rows: Sequence[Row], part: str, images: int, sample: str = "image", metrics: Sequence[str] = (ACCURACY,)
) -> Table:
    """One row per network.

    Args:
        rows: with ``network``, each metric (0 … 1), ``parameters``, ``flops_per_image``.
        part: of the data.
        images: how many are in it.
        sample: what one of them is called.
        metrics: by which the networks are judged.
    """
    titles = [title_of(metric) for metric in metrics]
    table = Table(caption=f"{' and '.join(titles)} in % on the {images} {sample}s of the {part} part")
    table.add_column("network")
    for title in (*titles, "parameters", f"FLOPs / {sample}"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            str(row["network"]),
            *(f"{100 * float(row[metric]):.2f}" for metric in metrics),
            f"{int(row['parameters']):,}",
            f"{int(row['flops_per_image']):,}",
        )
    return table


def print_table(table: Table) -> None:
    """Print to standard output; where that is no terminal, as wide as the table is."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by method, the teacher first, then in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["method"]), []).append(row)
    return dict(sorted(groups.items(), key=lambda group: group[0] != TEACHER_NAME))


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """``"95.12 ± 0.40"``; without the deviation for a single value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def figure(metrics: Sequence[Row], results: Sequence[Row], path: Path) -> None:
    """Validation accuracy (or what the results are judged by) over the epochs, and beside it the test's of every seed.

    Args:
        metrics: one row per job and epoch, with ``method``, ``seed``, ``epoch``, ``val/accuracy``, or, where nothing
            was held out for validation, ``test/accuracy``.
        results: one row per job, with ``method``, ``seed``, ``test_accuracy``.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(drawing)
    curves, dots = drawing.subplots(1, 2, width_ratios=(2, 1))
    groups, metric = by_method(results), metric_of(results)
    colours = {method: "0.35" if method == TEACHER_NAME else f"C{number}" for number, method in enumerate(groups)}
    for method, rows in by_method(metrics).items():
        epochs, lowest, mean, highest = _band(rows, metric)
        style = "--" if method == TEACHER_NAME else "-"
        curves.plot(epochs, mean, style, color=colours[method], label=method, linewidth=1.6)
        curves.fill_between(epochs, lowest, highest, color=colours[method], alpha=0.15, linewidth=0)
    part = "test" if any(f"test/{metric}" in row for row in metrics) else "validation"
    curves.set(xlabel="epoch", ylabel=f"{part} {title_of(metric)} (%)", title="while training")
    curves.set_ylim(share_limits([watched_score(row, metric) for row in metrics]))
    if metrics:
        curves.legend(loc="lower right", frameon=False)
    for place, (method, rows) in enumerate(groups.items()):
        values = [100 * score(row) for row in rows]
        dots.plot([place] * len(values), values, "o", color=colours[method], alpha=0.7)
        dots.hlines(statistics.fmean(values), place - 0.25, place + 0.25, color=colours[method])
    dots.set(ylabel=f"test {title_of(metric)} (%)", title="each network, and the mean", xlim=(-0.6, len(groups) - 0.4))
    dots.set_xticks(range(len(groups)), list(groups), rotation=20, ha="right", rotation_mode="anchor")
    dots.set_ylim(widened(dots.get_ylim()))
    for axes in (curves, dots):
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150, format="png")


def watched_score(row: Row, metric: str = ACCURACY) -> float:
    """How good the network is after an epoch, in %; as the data are judged by this metric."""
    return 100 * float(row.get(f"val/{metric}", row.get(f"test/{metric}", 0.0)))


def share_limits(shares: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis for curves of shares in %, so that the later epochs can be told apart.

    The first epochs may lie below it, unless 0 is not far. Small differences are not made large.

    Args:
        shares: all that is drawn.
    """
    if not shares:
        return 0.0, HIGHEST
    bottom = max(min(shares), statistics.median(shares) - LOOK) - 1
    top = min(max(shares) + max(0.1 * (max(shares) - bottom), 1.0), HIGHEST)
    if min(shares) >= 0 and bottom < top / 2:
        return 0.0, max(top, LEAST_SPAN)
    return min(bottom, top - LEAST_SPAN), top


def widened(limits: tuple[float, float]) -> tuple[float, float]:
    """Ends of an axis of shares in %, so far apart that small differences do not look large."""
    low, high = limits
    spare = max(LEAST_SPAN - (high - low), 0) / 2
    return low - spare, min(high + spare, HIGHEST)


def _band(rows: Sequence[Row], metric: str) -> tuple[list[int], list[float], list[float], list[float]]:
    by_epoch: dict[int, list[float]] = {}
    for row in rows:
        by_epoch.setdefault(int(row["epoch"]), []).append(watched_score(row, metric))
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    counted_from_one = [epoch + 1 for epoch in epochs]
    return counted_from_one, list(map(min, values)), list(map(statistics.fmean, values)), list(map(max, values))
