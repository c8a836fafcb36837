"""The fair fight: what was run is not run again, what is run twice is the same, and costs are what they are called."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from blockkd.costs import flops
from tests.benchmark_scripts import BENCHMARKS, script

RUNG = "digits"


@pytest.fixture
def fair_fight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, on a rung of 60 images and two epochs; its rows go to a folder of the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ladder  # type: ignore[import-not-found]

    monkeypatch.setattr(ladder, "SCRATCH", tmp_path / "scratch")
    small = ladder.Rung(
        lambda seed: ladder.digits(seed, images=60),
        epochs=2,
        batch=50,
        rates=(0.01, 0.4),
        trials=2,
        selection=(100,),
        finals=(0, 1),
        compute_finals=(0,),
        longest=3,
    )
    monkeypatch.setitem(ladder.RUNGS, RUNG, small)
    loaded = script("fair_fight")
    monkeypatch.setattr(loaded, "RESULTS", tmp_path / "results")
    return loaded


def rows_without(rows: list[dict[str, str]], *names: str) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(fair_fight: ModuleType) -> None:
    whole = fair_fight.Fight(RUNG, {})
    whole.search("kd")
    assert [row["trial"] for row in whole.rows] == ["0", "1"]
    assert float(whole.rows[0]["rate"]) == 0.05  # the field's setting comes first
    assert not any(row["test"] for row in whole.rows)  # the test part is not read
    whole.path.write_text("".join(whole.path.read_text().splitlines(keepends=True)[:2]))
    again = fair_fight.Fight(RUNG, {})
    assert len(again.rows) == 1
    again.search("kd")
    assert again.rows == whole.rows
    assert fair_fight.rows_of(again.path) == whole.rows


def test_finals_take_the_setting_of_the_best_trial_and_run_once(fair_fight: ModuleType) -> None:
    fight = fair_fight.Fight(RUNG, {})
    fight.search("kd")
    best = max(fight.rows, key=lambda row: float(row["held_out"]))
    for _ in range(2):
        fight.final("kd", "epochs", 0)
        assert len(fight.rows) == 3
    final = fight.rows[-1]
    assert (final["rate"], final["weight"], final["seed"], final["epochs"]) == (best["rate"], best["weight"], "0", "2")
    assert 0 <= float(final["test"]) <= 100


@pytest.mark.parametrize("method", ["block_kd", "fcfd"])
def test_a_run_is_the_same_whatever_was_counted_or_run_before_it(fair_fight: ModuleType, method: str) -> None:
    fight = fair_fight.Fight(RUNG, {})
    fight.search(method)
    fight.final(method, "epochs", 1)
    fight.final(method, "epochs", 0)
    fight.path.unlink()
    other = fair_fight.Fight(RUNG, {})
    other._cost(method, False)
    other.search(method)
    other.final(method, "epochs", 0)
    assert other.rows == [*fight.rows[:2], fight.rows[-1]]


def test_live_costs_are_those_with_the_teachers_forward(fair_fight: ModuleType) -> None:
    fight = fair_fight.Fight(RUNG, {})
    task: Any = fight._task(0)
    forward = flops(task.teacher, task.test[0][:4])
    assert fight._cost("kd", True) - fight._cost("kd", False) == pytest.approx(forward)
    assert fight._cost("review_kd", True) == fight._cost("review_kd", False) > forward  # it needs features


def test_equal_compute_spends_what_full_block_kd_spends(fair_fight: ModuleType) -> None:
    fight = fair_fight.Fight(RUNG, {})
    for part, live in (("compute", False), ("live", True)):
        for method in ("kd", "review_kd", "block_kd"):
            spent = fight._epochs_of_budget(method, live) * fight._cost(method, live)
            budget = 2 * fight._cost("block_kd", live)
            longest = 3 * 2 * fight._cost(method, live)
            assert abs(spent - min(budget, longest)) <= fight._cost(method, live) / 2, (part, method)
    assert fight._epochs_of_budget("kd", False) == 6  # more would be allowed by cost, not by the rung
    assert fight._epochs_of_budget("block_kd", True) == 2


def test_a_run_of_as_many_epochs_in_another_part_is_not_repeated(
    fair_fight: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fight = fair_fight.Fight(RUNG, {})
    fight.search("block_kd")
    fight.final("block_kd", "epochs", 0)
    monkeypatch.setattr(fair_fight, "fit", lambda *_: pytest.fail("trained again"))
    fight.final("block_kd", "compute", 0)
    fight.final("block_kd", "live", 0)
    epochs, compute, live = fight.rows[-3:]
    assert compute == epochs | {"part": "compute"}
    assert rows_without([live], "part", "mflops_per_image") == rows_without([epochs], "part", "mflops_per_image")
    task: Any = fight._task(0)
    forward = flops(task.teacher, torch.zeros(1, 1, 8, 8)) / 1e6
    assert float(live["mflops_per_image"]) - float(epochs["mflops_per_image"]) == pytest.approx(forward, rel=1e-2)


def test_a_step_that_draws_one_stone_costs_the_mean_over_stones_by_their_weights(fair_fight: ModuleType) -> None:
    levers = script("levers")
    study = levers.Study.__new__(levers.Study)  # without the rows of a real rung
    task: Any = fair_fight.Fight(RUNG, {})._task(0)
    example = task.test[0][:2]
    alone = [
        levers.image_flops(fair_fight.BlockKD(task.teacher, task.student(), example, stones=(i,)), task)
        for i in (1, 2, 3)
    ]
    assert alone[0] > alone[1] > alone[2]
    drawn = levers.variants.OneByOne(task.teacher, task.student(), example)
    assert study.cost(drawn, task) == pytest.approx((alone[0] / 4 + alone[1] / 2 + alone[2]) / (1 / 4 + 1 / 2 + 1))
    assert drawn.stones == (1, 2, 3)
