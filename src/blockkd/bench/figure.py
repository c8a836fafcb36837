"""The figure of the paper's Fig. 4 (a): what each method costs."""

from collections.abc import Mapping
from pathlib import Path

from blockkd.bench.contenders import NAIVE
from blockkd.bench.measuring import Measured
from blockkd.bench.results import BASE


def cost_figure(found: Mapping[str, Measured], title: str, path: Path) -> None:
    """Time and arithmetic per step as multiples of KD's, and beside them what is kept for the backward pass.

    Args:
        found: by name, with ``"KD"``.
        title: what was measured, and where.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 1.5 + 0.3 * len(found)), layout="constrained")
    FigureCanvasAgg(drawing)
    drawing.suptitle(title, fontsize=10)
    times, memory = drawing.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    base, places = found[BASE], range(len(found))
    ratios = [measured.ratio(base) for measured in found.values()]
    errors = [[ratio.median - ratio.low for ratio in ratios], [ratio.high - ratio.median for ratio in ratios]]
    times.barh(
        places, [ratio.median for ratio in ratios], xerr=errors, color=[_colour(name) for name in found], ecolor="0.3"
    )
    arithmetic = [measured.flops / base.flops for measured in found.values()]
    times.plot(arithmetic, places, "|", color="black", markersize=13, markeredgewidth=2, label="FLOPs, of KD's")
    times.axvline(1, color="0.5", linewidth=0.8)
    times.set(xlabel="time per step, of KD's (median, quartiles)")
    times.set_yticks(places, list(found))
    times.invert_yaxis()
    times.legend(loc="lower right", frameon=True, framealpha=1.0)
    saved = [measured.saved / 2**20 for measured in found.values()]
    memory.barh(places, saved, color=[_colour(name) for name in found])
    memory.set(xlabel="saved for the backward pass (MiB)")
    for axes in (times, memory):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150, format="png")


def _colour(name: str) -> str:
    if name == NAIVE:
        return "C3"
    if name.startswith("mdistiller"):
        return "0.7"
    return "C0" if "stone" in name else "C1"
