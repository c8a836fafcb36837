"""The figure of ``docs/evidence.md``: what each method reaches on 5,000 images of CIFAR-100, and what it costs.

    python benchmarks/evidence_figure.py                # → docs/images/fair_fight_cifar100_5000.png

From the same rows as the document's tables; a method without three seeds has no interval.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from evidence import RESULTS, cost_of, interval, row_of, rows_in, scores_of

from blockkd.comparison_figure import cost_axis, spaced
from blockkd.reporting.style import BLUE, PAPER, QUIET, VERMILION, Picture, look, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = Path(__file__).parents[1] / "docs" / "images"
RUNGS = "cifar100_5000", "cifar100_5000_long"  # the same task, trained for longer
HEIGHT, WIDTH = 4.6, 7.5  # inches
GAP = 0.06  # of the axes' height, from one name to the next
OURS = "block_kd"
FEWEST = 3  # seeds, below which no interval is drawn

Point = tuple[float, float, float | None]  # GFLOPs an image, mean accuracy, half of its 95 % interval


def points() -> dict[str, list[Point]]:
    """By method where it lies, the shortest training first."""
    found: dict[str, dict[float, Point]] = {}  # by cost: what costs the budget anyway is one run in both parts
    for rung in RUNGS:
        rows = rows_in(RESULTS / f"fair_fight_{rung}.csv")
        for part in ("epochs", "compute"):
            for method, by_seed in scores_of(rows, part).items():
                scores = list(by_seed.values())
                half = mean(scores) - interval(scores)[1] if len(scores) >= FEWEST else None
                cost = cost_of(row_of(rows, part, method))
                found.setdefault(method, {}).setdefault(cost, (cost, mean(scores), half))
    return {method: sorted(places.values()) for method, places in found.items()}


def draw(found: Mapping[str, Sequence[Point]]) -> Picture:
    """A line for each method; the shortest training, which all share, is filled."""
    figure, axes = panel(HEIGHT, WIDTH)
    for method, places in found.items():
        style = {"color": VERMILION if method.startswith(OURS) else BLUE, "linewidth": 1.0}
        axes.plot([cost for cost, _, _ in places], [accuracy for _, accuracy, _ in places], alpha=0.5, **style)
        for number, (cost, accuracy, half) in enumerate(places):
            filled = {} if number == 0 else {"markerfacecolor": PAPER}
            axes.errorbar(cost, accuracy, half, capsize=2, marker="o", markersize=5, **style, **filled)
    cost_axis(axes, [cost for places in found.values() for cost, _, _ in places])
    axes.set(xlabel="GFLOPs spent on each training image, all epochs", ylabel="test accuracy (%)")
    axes.set_title("filled: 12 epochs; hollow: longer; teacher recorded where a method can", color=QUIET)
    _name(axes, {method: places[-1] for method, places in found.items()})
    return Picture("fair_fight_cifar100_5000", "", figure)


def _name(axes: "Axes", ends: Mapping[str, Point]) -> None:
    """Names in a column at the right, each with a thin line to the end of its method's line."""
    low, high = axes.get_ylim()
    wanted = [(accuracy - low) / (high - low) for _, accuracy, _ in ends.values()]
    for (method, point), place in zip(ends.items(), spaced(wanted, GAP, low=0.0, high=1.0), strict=True):
        axes.annotate(
            method,
            point[:2],
            (1.04, place),
            textcoords="axes fraction",
            va="center",
            color=VERMILION if method.startswith(OURS) else BLUE,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkB": 3},
        )


def main() -> None:
    """Draw it."""
    with look():
        picture = draw(points())
        path = IMAGES / f"{picture.name}.png"
        path.write_bytes(picture.png())
    print(path)


if __name__ == "__main__":
    main()
