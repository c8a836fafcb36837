"""What each method reaches and what it costs (the paper's Fig. 4 (a)), and what each part of Block-KD brings (b)."""

import statistics
from collections.abc import Sequence

from blockkd.comparison import Comparison, Summary
from blockkd.comparison_figure import cost_axis, name_beside
from blockkd.report import by_method, mean_and_deviation, widened
from blockkd.reporting.judging import IMAGES, Judged
from blockkd.reporting.sections import Section, Table
from blockkd.reporting.style import BLUE, INK, PAPER, QUIET, Picture, colours_of, is_teacher, panel
from blockkd.runs import Row
from blockkd.scores import title_of

LABEL = 0.17  # inches from one name to the next
# The steps of Fig. 4 (b), by the names that the recipe gives them.
STEPS = {
    "kd": "KD, the baseline",
    "block_kd_stones_task": "+ stones' task loss",
    "block_kd_stones_distill": "+ stones' distillation loss",
    "block_kd": "+ L_cross, late",
}


def results_section(comparison: Comparison, rows: Sequence[Row], test_samples: int, judged: Judged = IMAGES) -> Section:
    """The table of all networks, and what they reach against what it costs.

    Args:
        comparison: of ``rows``.
        rows: one for each trained network; see ``blockkd.comparison``.
        test_samples: how many the scores are of.
        judged: what the networks look at, and by what they are judged.
    """
    if not len(comparison):
        reason = "No network is trained to the end yet; train on with --resume and report again."
        return Section("results", "Results", "", missing=[reason])
    table = Table(
        (
            *("method", *(f"test {title_of(metric)} (%)" for metric in judged.metrics), "n", "parameters"),
            *(f"FLOPs / {judged.sample}", "FLOPs of a step", "training (s)"),
        ),
        [_result(summary, [row for row in rows if row["method"] == summary.method], judged) for summary in comparison],
        f"after the last epoch, on {test_samples} test {judged.sample}s; mean ± standard deviation over n seeds",
    )
    students = [summary for summary in comparison if not is_teacher(summary.method)]
    pictures = [_cost(students, comparison.baseline, rows, judged)] if len(students) > 1 else []
    missing = (
        () if pictures else (f"{_capital(judged.title)} against cost needs two methods: add one with blockkd compare.",)
    )
    forward = f": FLOPs / {judged.sample} are of a forward pass for {judged.inputs}." if judged.step_inputs else "."
    lead = (
        f"Costs are FLOPs of one training step for {judged.step_inputs or judged.inputs}, forward and backward, of all "
        f"that runs: student, teacher, stones. What is deployed costs the same whatever the method{forward}"
    )
    return Section("results", "Results", lead if students else "", pictures, [table], missing=missing)


def ablation_section(rows: Sequence[Row], judged: Judged = IMAGES) -> Section:
    """What the parts of Block-KD bring, one after the other; needs the methods of the recipe ``ablation``.

    Args:
        rows: one for each trained network, with ``method``, ``seed`` and its score, as ``test_accuracy``.
        judged: by what the networks are judged.
    """
    title = "Part by part"
    groups = {method: values for method, values in by_method(rows).items() if method in STEPS}
    if set(STEPS) - set(groups):
        left = ", ".join(sorted(set(STEPS) - set(groups)))
        recipe = (
            "They are recipes behind every pair of images, as kd is; on digits one recipe trains all: blockkd distill "
            "--config digits/ablation --seeds 5."
            if judged.sample == "image"
            else "A recipe trains them that has methods of these names beside its own, as digits/ablation has."
        )
        return Section("ablation", title, "", missing=[f"Not trained: {left}. {recipe}"])
    column = f"test_{judged.metric}"
    accuracies = {step: {int(row["seed"]): 100 * float(row[column]) for row in groups[step]} for step in STEPS}
    table_rows, before = [], None
    for step, values in accuracies.items():
        shared = sorted(values.keys() & before.keys()) if before else []
        change = mean_and_deviation([values[s] - before[s] for s in shared], 2) if before and shared else ""
        signed = change if not change or change.startswith("-") else f"+{change}"
        table_rows.append((STEPS[step], mean_and_deviation(list(values.values()), 2), signed, str(len(values))))
        before = values
    caption = f"test {judged.title} in %, mean ± standard deviation; changes are paired by seed"
    table = Table(("", f"test {judged.title} (%)", "to the step before", "n"), table_rows, caption)
    lead = (
        "From plain KD to Block-KD, as in Fig. 4 (b) of the paper: first stones that learn from labels, then from the "
        "teacher too, then L_cross from its late epoch on."
    )
    return Section("ablation", title, lead, [_steps(accuracies, judged)], [table])


def _result(summary: Summary, rows: Sequence[Row], judged: Judged) -> tuple[str, ...]:
    flops = "" if summary.step_flops is None else f"{_step_flops(rows):,.0f}"
    return (
        summary.method,
        *(mean_and_deviation([100 * float(row[f"test_{metric}"]) for row in rows], 2) for metric in judged.metrics),
        str(len(rows)),
        f"{summary.parameters:,}",
        f"{summary.flops_per_image:,}",
        flops,
        mean_and_deviation([float(row["seconds"]) for row in rows], 1),
    )


def _step_flops(rows: Sequence[Row]) -> float:
    return max(float(row["step_flops"]) / float(row.get("batch_size", 1)) for row in rows if "step_flops" in row)


def _cost(students: Sequence[Summary], baseline: str | None, rows: Sequence[Row], judged: Judged) -> Picture:
    relative = all(summary.relative_flops for summary in students)
    counted = all(summary.step_flops for summary in students)
    groups = by_method(rows)
    if relative:
        costs = [float(summary.relative_flops or 0) for summary in students]
        label = f"FLOPs of a training step, in units of {baseline}'s"
    elif counted:
        costs, label = (
            [_step_flops(groups[s.method]) for s in students],
            f"FLOPs of a training step, for {judged.step_inputs or judged.inputs}",
        )
    else:
        costs, label = [summary.seconds.mean for summary in students], "training time (s)"
    height = max(2.6, LABEL * len(students))
    figure, axes = panel(height=height + 0.6)
    colours = colours_of([summary.method for summary in students])
    for summary, cost in zip(students, costs, strict=True):
        seeds = [100 * float(row[f"test_{judged.metric}"]) for row in groups[summary.method]]
        colour = colours[summary.method]
        axes.plot([cost] * len(seeds), seeds, "o", color=colour, alpha=0.3, markersize=3.5, markeredgewidth=0)
        axes.plot(cost, 100 * summary.last.mean, "o", color=colour, markersize=6)
    cost_axis(axes, costs)
    axes.set(xlabel=label, ylabel=f"test {judged.title} (%)")
    axes.margins(x=0.12)
    axes.set_ylim(widened(axes.get_ylim()))
    name_beside(axes, students, costs, LABEL / height * 1.25, left=1.04, size=8, colour=QUIET)
    caption = f"Test {judged.title} against the cost of training: the mean of each method; small, each seed."
    return Picture("cost", caption, figure)


def _steps(accuracies: dict[str, dict[int, float]], judged: Judged) -> Picture:
    figure, axes = panel(height=3.2)
    means = [statistics.fmean(values.values()) for values in accuracies.values()]
    axes.plot(means, color=INK, linewidth=1, zorder=1)
    for place, values in enumerate(accuracies.values()):
        spread = list(values.values())
        axes.plot([place] * len(spread), spread, "o", color=BLUE, alpha=0.4, markersize=4, markeredgewidth=0)
        axes.plot(place, means[place], "o", color=BLUE, markersize=7)
        said = axes.annotate(
            f"{means[place]:.2f}", (place, means[place]), (0, 10), textcoords="offset points", ha="center"
        )
        said.set_bbox({"boxstyle": "square,pad=0.1", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.85})
    axes.set_xticks(range(len(STEPS)), ["KD", "+ stones'\ntask", "+ stones'\ndistillation", "+ L_cross"], fontsize=8)
    axes.set(ylabel=f"test {judged.title} (%)", xlim=(-0.4, len(STEPS) - 0.6))
    axes.set_ylim(widened(axes.get_ylim()))
    caption = f"Test {judged.title} as part after part of Block-KD is added; small, each seed."
    return Picture("ablation", caption, figure)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
