"""Table and figure say what was measured."""

import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from blockkd.report import (
    HIGHEST,
    LEAST_SPAN,
    by_method,
    evaluation_table,
    figure,
    mean_and_deviation,
    results_table,
    share_limits,
)
from blockkd.runs import Row


def result(method: str, seed: int, accuracy: float) -> Row:
    return {
        "method": method,
        "seed": seed,
        "test_accuracy": accuracy,
        "parameters": 5142,
        "flops_per_image": 99136,
        "seconds": 2.0 + seed,
    }


RESULTS = [result("kd", 0, 0.95), result("teacher", 0, 0.99), result("kd", 1, 0.97), result("ce", 0, 0.9)]


def text_of(table: object) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_teacher_comes_first_and_the_others_in_their_order() -> None:
    assert list(by_method(RESULTS)) == ["teacher", "kd", "ce"]


def test_table_shows_mean_deviation_and_count() -> None:
    lines = text_of(results_table(RESULTS, 540)).splitlines()
    kd = next(line for line in lines if " kd " in line)
    assert "96.00 ± 1.41" in kd  # sample standard deviation of 95 and 97 is √2
    assert "│ 2 │" in kd
    assert "5,142" in kd
    assert "99,136" in kd
    assert "2.5 ± 0.7" in kd
    teacher = next(line for line in lines if "teacher" in line)
    assert "99.00" in teacher
    assert "±" not in teacher
    assert "540 test images" in " ".join(lines)


def test_mean_and_deviation_by_hand() -> None:
    values = [1.0, 2.0, 4.0]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert mean_and_deviation(values, 3) == f"{mean:.3f} ± {deviation:.3f}"
    assert mean_and_deviation([3.14159], 2) == "3.14"


def test_evaluation_table_shows_percent() -> None:
    rows: list[Row] = [{"network": "student", "accuracy": 0.7263, "parameters": 10, "flops_per_image": 20}]
    assert "72.63" in text_of(evaluation_table(rows, "test", 10000))


def test_figure_is_drawn_with_one_epoch_or_several_seeds_or_no_curve(tmp_path: Path) -> None:
    metrics: list[Row] = [
        {"method": row["method"], "seed": row["seed"], "epoch": epoch, "val/accuracy": 0.5 + epoch / 10}
        for row in RESULTS
        for epoch in range(3)
    ]
    drawn = {}
    for name, rows in (("three", metrics), ("one", [row for row in metrics if row["epoch"] == 0]), ("none", [])):
        figure(rows, RESULTS, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size[0] > 1000
            drawn[name] = image.tobytes()
    assert len(set(drawn.values())) == 3


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1))
def test_an_axis_of_shares_shows_the_better_half_and_makes_nothing_large(shares: list[float]) -> None:
    low, high = share_limits(shares)
    assert low <= statistics.median(shares)
    assert max(shares) < high <= HIGHEST
    assert high - low >= LEAST_SPAN - 1e-9
    assert low >= 0 or min(shares) < 0  # no room below 0 where nothing lies there


def test_an_axis_of_shares_begins_at_0_where_that_is_not_far() -> None:
    assert share_limits([100, 7, 6, 8]) == (0.0, HIGHEST)
    low, high = share_limits([3, 20, 90, 97, 98, 98.5])
    assert 75 < low < 90
    assert high == pytest.approx(98.5 + 0.1 * (98.5 - low))
    assert share_limits([]) == (0.0, HIGHEST)
