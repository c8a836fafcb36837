"""What a comparison says of its methods: means, paired tests, costs; and how it is shown."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from blockkd.comparison import Comparison, Difference, Summary, holm, paired_difference, spread, summarise
from blockkd.comparison_figure import comparison_figure, draw_comparison, spaced
from blockkd.comparison_tables import comparison_markdown, comparison_rows, comparison_table
from blockkd.environment import environment
from blockkd.published import Published
from blockkd.runs import Row, read_csv, write_csv

ACCURACIES = {"kd": [0.73, 0.74, 0.735, 0.738], "dkd": [0.752, 0.757, 0.751, 0.761], "ce": [0.725, 0.739, 0.72, 0.731]}
PUBLISHED = {
    "kd": Published(73.33, "A README", "240 epochs, last epoch", "https://a.example"),
    "norm": Published(76.49, "B README", "best epoch on the test set", "https://b.example"),
}


def row(method: str, seed: int, accuracy: float, **others: float) -> Row:
    return {
        "method": method,
        "seed": seed,
        "epochs": 240,
        "test_accuracy": accuracy,
        "parameters": 5142,
        "flops_per_image": 99136,
        "seconds": 100.0,
        **others,
    }


def rows(**others: float) -> list[Row]:
    students = [row(method, seed, a, **others) for method in ACCURACIES for seed, a in enumerate(ACCURACIES[method])]
    return [*students, row("teacher", 0, 0.7942) | {"epochs": 0}]


def by_name(comparison: Comparison) -> dict[str, Summary]:
    return {summary.method: summary for summary in comparison}


def difference_of(comparison: Comparison, method: str) -> Difference:
    difference = by_name(comparison)[method].difference
    assert difference is not None
    return difference


# --- the oracles: Student's t by integration of its density, Holm by trying levels of significance


def density(t: float, freedom: int) -> float:
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    return scale * (1 + t * t / freedom) ** (-(freedom + 1) / 2)


def share_within(t: float, freedom: int, steps: int = 4000) -> float:
    """The probability of -|t| … |t|, by Simpson's rule."""
    t = abs(t)
    width = t / steps
    inner = sum((4 if k % 2 else 2) * density(k * width, freedom) for k in range(1, steps))
    return 2 * width / 3 * (density(0, freedom) + inner + density(t, freedom))


def bisected(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``holds`` turns from False to True."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def rejected(p_values: Sequence[float], level: float) -> set[int]:
    """Holm's procedure: from the smallest p on, each against the level over how many are left, up to a failure."""
    found: set[int] = set()
    for i in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        if p_values[i] > level / (len(p_values) - len(found)):
            break
        found.add(i)
    return found


# --- numbers


@pytest.mark.parametrize("n", [2, 3, 4])
def test_paired_test_equals_its_oracle(n: int) -> None:
    ours, theirs = ACCURACIES["dkd"][:n], ACCURACIES["kd"][:n]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(differences) / n
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1)) / math.sqrt(n)
    critical = bisected(lambda t: share_within(t, n - 1) >= 0.95, 0, 20)
    found = paired_difference(dict(enumerate(theirs)), dict(enumerate(ours)))
    assert found is not None
    assert found.n == n
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - critical * error, rel=1e-5)
    assert found.high == pytest.approx(mean + critical * error, rel=1e-5)
    assert found.p == pytest.approx(1 - share_within(mean / error, n - 1), rel=1e-4)


@given(st.lists(st.floats(1e-4, 1), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_holm_equals_its_oracle(p_values: list[float]) -> None:
    for i, adjusted in enumerate(holm(p_values)):
        level = bisected(lambda level, i=i: i in rejected(p_values, level), 0, 10)  # type: ignore[misc]
        assert adjusted == pytest.approx(min(level, 1))


def test_holm_of_nothing() -> None:
    assert holm([]) == []


def test_interval_of_a_mean_equals_its_oracle() -> None:
    values = ACCURACIES["ce"]
    found = spread(values)
    critical = bisected(lambda t: share_within(t, 3) >= 0.95, 0, 20)
    assert found.mean == pytest.approx(sum(values) / 4)
    assert found.deviation == pytest.approx(statistics.stdev(values))
    assert found.half_width == pytest.approx(critical * statistics.stdev(values) / 2, rel=1e-5)


def test_of_one_seed_or_of_equal_ones_nothing_is_said_about_spread() -> None:
    assert (spread([0.7]).deviation, spread([0.7]).half_width) == (None, None)
    assert spread([0.7, 0.7]).half_width is None


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired_difference({0: 0.7, 1: 0.71, 2: 0.1}, {1: 0.73, 0: 0.705, 9: 0.9})
    assert found is not None
    assert found.n == 2
    assert found.mean == pytest.approx((0.005 + 0.02) / 2)
    assert paired_difference({0: 0.7}, {1: 0.7}) is None


@pytest.mark.parametrize("shift", [0.0, 0.01, -0.03])
def test_equal_differences_give_no_test(shift: float) -> None:
    exact = [0.2411, 0.4957, 0.7313]
    # Accuracies come as float32, and differences of such differ by their rounding.
    kd, ours = ([torch.tensor(a + b, dtype=torch.float32).item() for a in exact] for b in (0, shift))
    found = paired_difference(dict(enumerate(kd)), dict(enumerate(ours)))
    assert found is not None
    assert found.mean == pytest.approx(shift, abs=1e-7)
    assert (found.low, found.high, found.p) == (None, None, None)


def test_one_image_of_fifty_thousand_is_a_difference() -> None:
    found = paired_difference(dict.fromkeys(range(5), 0.7), {0: 0.7 + 1 / 50_000} | dict.fromkeys(range(1, 5), 0.7))
    assert found is not None
    assert found.p == pytest.approx(1 - share_within(1, 4), rel=1e-4)  # t is 1 when one of n differs from 0


def test_a_method_is_tested_against_the_baseline_and_the_teacher_is_not() -> None:
    comparison = summarise(rows())
    assert comparison.baseline == "kd"
    assert [summary.method for summary in comparison] == ["teacher", "kd", "dkd", "ce"]
    assert by_name(comparison)["teacher"].difference is None
    assert by_name(comparison)["kd"].difference is None
    dkd, ce = difference_of(comparison, "dkd"), difference_of(comparison, "ce")
    assert dkd.mean == pytest.approx(statistics.fmean(ACCURACIES["dkd"]) - statistics.fmean(ACCURACIES["kd"]))
    assert dkd.p is not None
    assert ce.p is not None
    assert dkd.p < ce.p
    assert dkd.p_holm == pytest.approx(2 * dkd.p)
    assert ce.p_holm == pytest.approx(ce.p)


def test_what_cannot_be_tested_does_not_count_for_holm() -> None:
    alone = [row("alone", 0, 0.5)]
    dkd = difference_of(summarise([*rows(), *alone]), "dkd")
    assert dkd.p is not None
    assert dkd.p_holm == pytest.approx(2 * dkd.p)
    assert difference_of(summarise([*rows(), *alone]), "alone").p_holm is None


def test_another_baseline_and_none() -> None:
    other = summarise(rows(), baseline="dkd")
    assert difference_of(other, "kd").mean == pytest.approx(-difference_of(summarise(rows()), "dkd").mean)
    without = summarise([r for r in rows() if r["method"] != "kd"])
    assert without.baseline is None
    assert all(summary.difference is None and summary.relative_seconds is None for summary in without)
    with pytest.raises(ValueError, match=r"no method 'at'.*teacher, kd, dkd, ce"):
        summarise(rows(), baseline="at")


def test_rows_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(ValueError, match="kd is there more than once for seed 0"):
        summarise([*rows(), row("kd", 0, 0.7)])
    with pytest.raises(ValueError, match="for 8 and for 240 epochs"):
        summarise([*rows(), row("kd", 7, 0.7) | {"epochs": 8}])


def test_the_best_epoch_and_by_what_it_was_chosen() -> None:
    validated = by_name(summarise(rows(best_test_accuracy=0.76, best_watched_accuracy=0.77)))["kd"]
    assert validated.best is not None
    assert validated.best.mean == pytest.approx(0.76)
    assert validated.best_chosen_on == "validation"
    watched = by_name(summarise(rows(best_watched_accuracy=0.77)))["kd"]
    assert watched.best is not None
    assert watched.best.mean == pytest.approx(0.77)
    assert watched.best_chosen_on == "test"
    some = rows(best_test_accuracy=0.76)
    del some[0]["best_test_accuracy"]  # a mean over other seeds than the last epoch's would mislead
    assert (by_name(summarise(some))["kd"].best, by_name(summarise(some))["kd"].best_chosen_on) == (None, None)


def test_costs_in_units_of_the_baseline() -> None:
    kd = row("kd", 0, 0.7, step_flops=300, batch_size=64, saved_mib=10.0) | {"seconds": 50.0}
    more = row("more", 0, 0.7, step_flops=600, batch_size=64, saved_mib=30.0, peak_memory_mib=7)
    again = row("more", 1, 0.7, step_flops=600, batch_size=64, saved_mib=31.0, peak_memory_mib=9) | {"seconds": 140.0}
    wide = row("wide", 0, 0.7, step_flops=600, batch_size=128)
    found = by_name(summarise([kd, more, again, wide, row("unknown", 0, 0.7)]))
    assert (found["kd"].relative_flops, found["kd"].relative_seconds) == (1, 1)
    assert found["more"].step_flops == 600
    assert found["more"].relative_flops == pytest.approx(2)
    assert found["more"].relative_seconds == pytest.approx(120 / 50)
    assert (found["more"].saved_mib, found["more"].peak_memory_mib) == (31, 9)
    assert found["wide"].relative_flops == pytest.approx(1)  # for one image
    assert (found["unknown"].step_flops, found["unknown"].relative_flops) == (None, None)
    teacher = by_name(summarise([kd, row("teacher", 0, 0.8, step_flops=900)]))["teacher"]
    assert (teacher.relative_flops, teacher.relative_seconds) == (
        None,
        None,
    )  # it is not trained in the students' place
    for r in (kd, more, again):
        del r["batch_size"]
    assert by_name(summarise([kd, more, again]))["more"].relative_flops == pytest.approx(2)


# --- tables


def shown(comparison: Comparison, width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(comparison_table(comparison, 10_000))
    return captured.get()


def line_of(text: str, method: str) -> str:
    return next(line for line in text.splitlines() if line.strip("|` ").startswith(method))


def long_comparison() -> Comparison:
    many = [
        row("consolidated_alignment", s, 0.7512 + 0.001 * s * s, best_watched_accuracy=0.76 + 0.01 * s, step_flops=9)
        for s in range(3)
    ]
    kd = [row("kd", s, 0.74 - 0.003 * s, best_watched_accuracy=0.75 + 0.01 * s, step_flops=5) for s in range(3)]
    return summarise([*kd, *[r | {"seconds": 123_456.0} for r in many]], published=PUBLISHED)


def test_table_says_what_was_measured() -> None:
    text = shown(summarise(rows(step_flops=5), published=PUBLISHED))
    kd, dkd = line_of(text, "kd"), line_of(text, "dkd")
    assert f"{100 * statistics.fmean(ACCURACIES['kd']):.2f} ± {100 * statistics.stdev(ACCURACIES['kd']):.2f}" in kd
    assert "73.33" in kd
    expected = difference_of(summarise(rows()), "dkd")
    assert f"+{100 * expected.mean:.2f} [+{100 * (expected.low or 0):.2f}, +{100 * (expected.high or 0):.2f}]" in dkd
    assert f"{expected.p_holm:.3f}" in dkd
    assert "76.49" in line_of(text, "norm")
    said = " ".join(text.split())
    for words in ("10,000 test images", "paired t-test", "2 methods tested", "not ours", "A README, B README"):
        assert words in said


def test_a_line_of_the_table_fits_120_columns() -> None:
    text = shown(long_comparison())
    line = line_of(text, "consolidated_alignment")
    assert len(line.rstrip()) <= 120
    for cell in ("consolidated_alignment", "†", "]", "123,456", "1.80"):
        assert cell in line  # nothing is cut or broken to a second line
    assert "…" not in text


def test_what_nobody_has_is_no_column_and_no_note() -> None:
    text = shown(summarise([row("ce", 0, 0.7)]))
    for words in ("best", "published", "Holm", "CI", "FLOPs", "epochs", "†"):
        assert words not in text.replace("last epoch", "")


def test_the_test_set_as_judge_is_marked() -> None:
    watched, validated = (summarise(rows(**{name: 0.77})) for name in ("best_watched_accuracy", "best_test_accuracy"))
    for show in (shown, lambda comparison: comparison_markdown(comparison, {})):
        assert "77.00 ± 0.00†" in line_of(show(watched), "kd")
        assert "chosen on the test set" in " ".join(show(watched).split())
        assert "†" not in show(validated)
        assert "best on the validation part" in show(validated)


def test_other_epochs_are_said() -> None:
    short = [row("short", 0, 0.6) | {"epochs": 8}]
    assert "same number of epochs" in shown(summarise([*rows(), *short]))
    assert "same number of epochs" not in shown(summarise(rows()))
    assert " 8 " in line_of(comparison_markdown(summarise([*rows(), *short]), {}), "short")


def test_a_difference_over_fewer_seeds_says_so_and_has_no_test_for_one() -> None:
    text = shown(summarise([*rows(), row("few", 0, 0.74), row("few", 8, 0.75)]))
    assert "+1.00 n=1" in line_of(text, "few")
    alone = shown(summarise([row("kd", 0, 0.7), row("ce", 0, 0.7)]))
    assert "0.00" in line_of(alone, "ce")
    assert "no test" in alone


def test_a_tiny_p_is_not_zero() -> None:
    apart = [row("far", s, ACCURACIES["kd"][s] + 0.1 + 0.0001 * s) for s in range(4)]
    assert "< 0.001" in line_of(shown(summarise([*rows(), *apart])), "far")


def test_markdown_stands_by_itself() -> None:
    text = comparison_markdown(summarise(rows(), published=PUBLISHED), {"command": "blockkd compare x"}, "Results")
    assert text.startswith("## Results\n")
    assert "73.33 (published, A README)" in line_of(text, "kd")
    table = [line for line in text.splitlines() if line.startswith("|")]
    ours, published_only = table[:6], table[6:]
    assert len({line.count("|") for line in ours}) == 1
    assert not any("norm" in line for line in ours)
    assert "76.49 (published, B README)" in published_only[-1]
    for words in ("240 epochs, last epoch. https://a.example", "best epoch on the test set. https://b.example"):
        assert words in text
    assert "* command: `blockkd compare x`" in text
    assert "published" not in comparison_markdown(summarise(rows()), {}).lower()


def test_csv_holds_everything_and_comes_back(tmp_path: Path) -> None:
    comparison = summarise(rows(step_flops=5, batch_size=64, saved_mib=2.5), published=PUBLISHED)
    write_csv(tmp_path / "comparison.csv", comparison_rows(comparison))
    back = {str(line["method"]): line for line in read_csv(tmp_path / "comparison.csv")}
    assert list(back) == ["teacher", "kd", "dkd", "ce", "norm"]
    dkd, expected = back["dkd"], by_name(comparison)["dkd"]
    assert expected.difference is not None
    assert dkd["test_accuracy_mean"] == pytest.approx(expected.last.mean)
    assert dkd["test_accuracy_std"] == pytest.approx(expected.last.deviation)
    assert dkd["baseline"] == "kd"
    for name in ("n", "mean", "low", "high"):
        assert dkd[f"difference_{name}"] == pytest.approx(getattr(expected.difference, name))
    assert dkd["p"] == pytest.approx(expected.difference.p)
    assert dkd["p_holm"] == pytest.approx(expected.difference.p_holm)
    assert (dkd["relative_flops"], dkd["saved_mib"]) == (1, 2.5)
    assert "published_percent" not in dkd
    assert back["kd"]["published_percent"] == 73.33
    assert back["norm"] == {
        "method": "norm",
        "n": 0,
        "published_percent": 76.49,
        "published_source": "B README",
        "published_protocol": "best epoch on the test set",
    }


def test_rows_read_from_csv_give_the_same_comparison(tmp_path: Path) -> None:
    mixed = [*rows(step_flops=5), row("other", 3, 0.7, peak_memory_mib=3.5)]
    write_csv(tmp_path / "results.csv", mixed)
    again = summarise(read_csv(tmp_path / "results.csv"))
    for mine, theirs in zip(summarise(mixed), again, strict=True):
        for name in (field.name for field in fields(Summary)):
            assert getattr(mine, name) == getattr(theirs, name)


# --- figure


def marked(axes: Axes, marker: str) -> list[tuple[float, float]]:
    """Where there are markers of this kind; those of error bars are smaller."""
    lines = [line for line in axes.get_lines() if line.get_marker() == marker and float(line.get_markersize()) >= 5]
    return [(x, y) for line in lines for x, y in np.asarray(line.get_xydata()).tolist()]


def costed() -> list[Row]:
    flops = {"kd": 5, "dkd": 7, "ce": 2, "teacher": 1}
    return [r | {"step_flops": flops[str(r["method"])]} for r in rows()]


def test_figure_shows_every_network_and_published_numbers_apart() -> None:
    left = draw_comparison(summarise(rows(), published=PUBLISHED), rows()).axes[0]
    assert [label.get_text() for label in left.get_yticklabels()] == ["kd", "dkd", "ce"]
    networks = [100 * accuracy for accuracies in ACCURACIES.values() for accuracy in accuracies]
    assert [x for x, _ in marked(left, "o")] == pytest.approx(networks)
    assert marked(left, "D") == [(73.33, 0)]
    means = [100 * statistics.fmean(values) for values in ACCURACIES.values()]
    assert [x for x, _ in marked(left, "|")] == pytest.approx(means)
    assert "79.42" in left.get_xlabel()
    (legend,) = left.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mean of kd", "published, not ours"]


def test_figure_without_published_numbers_has_no_diamond() -> None:
    drawing = draw_comparison(summarise(rows()), rows())
    assert not marked(drawing.axes[0], "D")
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == ["mean of kd"]
    assert not draw_comparison(summarise([row("ce", 0, 0.7)]), [row("ce", 0, 0.7)]).legends


def test_figure_shows_cost_in_flops_where_all_have_them_and_in_seconds_otherwise() -> None:
    means = [100 * statistics.fmean(values) for values in ACCURACIES.values()]
    right = draw_comparison(summarise(costed()), costed()).axes[1]
    assert [text.get_text() for text in right.texts] == ["kd", "dkd", "ce"]
    assert [x for x, _ in marked(right, "o")] == pytest.approx([1, 7 / 5, 2 / 5])
    assert [y for _, y in marked(right, "o")] == pytest.approx(means)
    partly = [{k: v for k, v in r.items() if k != "step_flops" or r["method"] != "ce"} for r in costed()]
    right = draw_comparison(summarise(partly), partly).axes[1]
    assert [x for x, _ in marked(right, "o")] == pytest.approx([100] * 3)
    assert "seconds" in right.get_xlabel()


def test_labels_of_the_figure_do_not_overlap() -> None:
    many = [row(f"a_method_{k}", seed, 0.7 + 0.0002 * k + 0.001 * seed) for k in range(20) for seed in range(2)]
    drawing = draw_comparison(summarise(many), many)
    drawing.draw_without_rendering()
    for axes in drawing.axes:
        texts = axes.texts or axes.get_yticklabels()
        assert len(texts) == 20
        boxes = sorted((Text.get_window_extent(text) for text in texts), key=lambda box: box.y0)
        assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
        assert all(box.x0 >= 0 and box.x1 <= drawing.bbox.x1 for box in boxes)


def test_figure_is_written(tmp_path: Path) -> None:
    comparison_figure(summarise(rows()), rows(), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size[0] > 1000


def test_figure_without_a_student_says_so(tmp_path: Path) -> None:
    teacher = [row("teacher", 0, 0.8)]
    with pytest.raises(ValueError, match="no trained student"):
        comparison_figure(summarise(teacher), teacher, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=25), st.floats(0.001, 0.2))
@settings(max_examples=200, deadline=None)
def test_labels_keep_their_distance_order_and_bounds(wanted: list[float], gap: float) -> None:
    places = spaced(wanted, gap, 0, 1)
    least = min(gap, 1 / max(len(wanted) - 1, 1))
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    ordered = sorted(places)
    assert all(b - a >= least - 1e-9 for a, b in pairwise(ordered))
    for i, place in enumerate(places):
        assert all(place < other for j, other in enumerate(places) if wanted[i] < wanted[j])


def test_labels_with_room_stay_where_they_are_wanted() -> None:
    assert spaced([0.9, 0.1, 0.5], 0.1, 0, 1) == [0.9, 0.1, 0.5]
    assert spaced([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])


# --- the footer


def test_the_environment_is_that_of_this_python() -> None:
    facts = environment()
    assert facts["torch"] == torch.__version__
    assert ("GPU" in facts) == torch.cuda.is_available()
    assert f"torch threads: {torch.get_num_threads()}" in facts["CPU"]
    assert len(facts["date"]) == len("2026-01-31")
