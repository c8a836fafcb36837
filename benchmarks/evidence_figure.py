"""The figure of ``docs/evidence.md``: what each method reaches on a rung, and what it costs.

python benchmarks/evidence_figure.py                # → docs/images/fair_fight_cifar100_5000.png
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evidence import RESULTS, Row, cost_of, interval, row_of, rows_in, scores_of

from blockkd.comparison_figure import cost_axis, spaced
from blockkd.reporting.style import BLUE, PAPER, QUIET, VERMILION, Picture, look, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = Path(__file__).parents[1] / "docs" / "images"
HEIGHT, WIDTH = 4.2, 7.5  # inches
GAP = 0.065  # of the axes' height, from one name to the next
OURS = "block_kd"

Point = tuple[float, float, float]  # GFLOPs an image, mean accuracy, half of its 95 % interval


def points(rows: Sequence[Row], part: str) -> dict[str, Point]:
    """By method where it lies; methods with fewer than two seeds are left out."""
    found = {}
    for method, scores in scores_of(rows, part).items():
        if len(scores) > 1:
            centre, low, _ = interval(list(scores.values()))
            found[method] = cost_of(row_of(rows, part, method)), centre, centre - low
    return found


def draw(rows: Sequence[Row], rung: str) -> Picture:
    """Filled at equal epochs, hollow at equal compute; a line leads from one to the other."""
    figure, axes = panel(HEIGHT, WIDTH)
    equal_epochs, equal_compute = points(rows, "epochs"), points(rows, "compute")
    last = {method: equal_compute.get(method, point) for method, point in equal_epochs.items()}
    for method, (cost, accuracy, half) in equal_epochs.items():
        colour = _colour(method)
        longer = last[method]
        axes.plot([cost, longer[0]], [accuracy, longer[1]], color=colour, linewidth=0.8, alpha=0.5)
        axes.errorbar(cost, accuracy, half, color=colour, capsize=2, linewidth=1, marker="o", markersize=5)
        if longer[0] > 1.01 * cost:
            style = {"marker": "o", "markersize": 5, "markerfacecolor": PAPER}
            axes.errorbar(*longer, color=colour, capsize=2, linewidth=1, **style)
    cost_axis(axes, [cost for cost, _, _ in [*equal_epochs.values(), *equal_compute.values()]])
    axes.set(xlabel="GFLOPs spent on each training image, all epochs", ylabel="test accuracy (%)")
    axes.set_title("filled: equal epochs; hollow: Block-KD's compute", color=QUIET)
    _name(axes, last)
    seeds = {len(scores) for scores in scores_of(rows, "epochs").values()}
    caption = f"{rung}: mean over {min(seeds)} to {max(seeds)} seeds and its 95 % interval."
    return Picture(f"fair_fight_{rung}", caption, figure)


def _name(axes: "Axes", last: Mapping[str, Point]) -> None:
    """Names in a column at the right, each with a thin line to the method's last point."""
    low, high = axes.get_ylim()
    wanted = [(accuracy - low) / (high - low) for _, accuracy, _ in last.values()]
    for (method, point), place in zip(last.items(), spaced(wanted, GAP, low=0.0, high=1.0), strict=True):
        arrow = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkB": 3}
        axes.annotate(
            method, point[:2], (1.05, place), textcoords="axes fraction", va="center", color=_colour(method),
            arrowprops=arrow,
        )  # fmt: skip


def _colour(method: str) -> str:
    return VERMILION if method.startswith(OURS) else BLUE


def main() -> None:
    rung = "cifar100_5000"
    with look():
        picture = draw(rows_in(RESULTS / f"fair_fight_{rung}.csv"), rung)
        path = IMAGES / f"{picture.name}.png"
        path.write_bytes(picture.png())
    print(f"{path}: {picture.caption}")


if __name__ == "__main__":
    main()
