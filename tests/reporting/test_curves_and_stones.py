"""What the rows of a run say over the epochs and along the depth."""

import pytest

from blockkd.reporting.costs import STEPS, ablation_section
from blockkd.reporting.curves import by_epoch, curves_section
from blockkd.reporting.judging import Judged
from blockkd.reporting.stones import along_depth, bottleneck, stones_section
from blockkd.reporting.style import look
from blockkd.runs import Row


def row(method: str, seed: int, epoch: int, **values: float) -> Row:
    found: Row = {"method": method, "seed": seed, "epoch": epoch, "val/accuracy": 0.9, "val/loss": 0.5}
    return found | {name.replace("__", "/"): value for name, value in values.items()}


def stones(seed: int, epoch: int, first: float, second: float, student: float) -> Row:
    return row(
        "block_kd", seed, epoch, val__accuracy=0.95, val__teacher__accuracy=0.99, val__student__agrees_teacher=student,
        val__stone_1__accuracy=0.7, val__stone_1__agrees_teacher=first, val__stone_1__agrees_student=0.6,
        val__stone_2__accuracy=0.8, val__stone_2__agrees_teacher=second, val__stone_2__agrees_student=0.65,
        train__task__stone_1=0.2, train__task__student=0.1, train__distill__stone_1=0.4,
    )  # fmt: skip


ROWS = [
    stones(0, 0, 0.1, 0.1, 0.1),
    stones(0, 1, 0.9, 0.7, 0.8),
    stones(1, 0, 0.1, 0.1, 0.1),
    stones(1, 1, 0.92, 0.8, 0.9),
]


def test_epochs_are_counted_from_one_and_gaps_left_out() -> None:
    rows = [row("kd", 0, 1), row("kd", 1, 0, extra=3.0), row("kd", 0, 0)]
    assert by_epoch(rows, lambda one: float(one["epoch"])) == {1: [0.0, 0.0], 2: [1.0]}
    assert by_epoch(rows, lambda one: float(one["extra"]) if "extra" in one else None) == {1: [3.0]}


def test_curves_mark_where_the_cross_loss_starts() -> None:
    with look():
        section = curves_section(ROWS, {"block_kd": 1})
        texts = [picture.inline() for picture in section.pictures]
        without = curves_section(ROWS, {}).pictures[0].inline()
    assert [picture.name for picture in section.pictures] == ["accuracy", "loss", "parts-block_kd"]
    assert all("L_cross starts" in text for text in texts)
    assert "L_cross starts" not in without
    with look():
        later = curves_section(ROWS, {"block_kd": 2}).pictures[0].inline()
    assert "L_cross starts" not in later  # these rows end before
    assert "distillation" in texts[2]
    assert ">cross<" not in texts[2]  # there is none in these rows


def test_without_an_epoch_there_is_a_line_instead() -> None:
    section = curves_section([], {})
    assert section.is_empty
    assert "--resume" in section.missing[0]


def test_along_the_depth_stands_the_last_epoch_of_every_seed() -> None:
    places = along_depth(ROWS)
    assert [place.name for place in places] == ["teacher", "N_1", "N_2", "student"]
    assert [place.agreement for place in places] == [
        [100.0, 100.0], pytest.approx([90.0, 92.0]), pytest.approx([70.0, 80.0]), pytest.approx([80.0, 90.0])
    ]  # fmt: skip
    assert "block 2: N_2" in bottleneck(places)
    assert "75.0 ± 7.1 %" in bottleneck(places)


def test_the_bottleneck_may_be_the_students_own_classifier() -> None:
    assert "the student's classifier" in bottleneck(along_depth([stones(0, 3, 0.9, 0.9, 0.5)]))


def test_stones_that_were_not_watched_say_what_to_run() -> None:
    plain = [row("block_kd", 0, 0), row("kd", 0, 0)]
    assert "--watch_stones true" in stones_section(plain, ["block_kd"], {}).missing[0]
    assert "No method of these runs has stones" in stones_section(plain, [], {}).missing[0]
    with look():
        section = stones_section([*ROWS, row("kd", 0, 0)], ["block_kd"], {"block_kd": 1})
    assert len(section.pictures) == 4
    assert [line[0] for line in section.tables[0].rows] == ["teacher", "N_1", "N_2", "student"]
    assert section.tables[0].rows[2][3] == "-16.0"
    assert section.points[0].startswith("block_kd: the bottleneck is block 2")


def test_the_ablation_is_paired_by_seed_and_needs_all_steps() -> None:
    def result(method: str, seed: int, accuracy: float) -> Row:
        return {"method": method, "seed": seed, "test_accuracy": accuracy}

    rows = [result(step, seed, 0.9 + 0.01 * place + 0.1 * seed) for place, step in enumerate(STEPS) for seed in (0, 1)]
    with look():
        table = ablation_section(rows).tables[0]
    assert [line[0] for line in table.rows] == list(STEPS.values())
    assert [line[2] for line in table.rows] == ["", "+1.00 ± 0.00", "+1.00 ± 0.00", "+1.00 ± 0.00"]
    missing = ablation_section([one for one in rows if one["method"] != "kd"]).missing[0]
    assert missing.startswith("Not trained: kd.")
    assert "digits/ablation" in missing


@pytest.mark.parametrize(("last", "scale"), [(0.3, "linear"), (0.01, "log")])
def test_a_loss_has_numbers_at_its_ticks_and_epochs_are_whole(last: float, scale: str) -> None:
    rows = [row("kd", 0, 0), row("kd", 0, 1), row("kd", 0, 2, val__loss=last)]
    with look():
        loss = curves_section(rows, {}).pictures[1].figure.axes[0]
    assert loss.get_yscale() == scale
    low, high = loss.get_xlim()
    assert [tick for tick in loss.get_xticks() if low <= tick <= high] == [1, 2, 3]


def test_scores_are_those_of_the_metric() -> None:
    judged = Judged("sentence", ("matthews",))
    rows: list[Row] = [{"method": "kd", "seed": 0, "epoch": 0, "val/matthews": -0.25, "val/loss": 0.5}]
    with look():
        picture = curves_section(rows, {}, judged).pictures[0]
    assert picture.name == "matthews"
    (line,) = picture.figure.axes[0].get_lines()
    assert list(line.get_ydata()) == [-25.0]  # type: ignore[arg-type]
    assert picture.figure.axes[0].get_ylim()[0] < -25
    assert "needs classes" in stones_section(rows, ["kd"], {}, Judged("sentence", ("spearman",), False)).missing[0]
