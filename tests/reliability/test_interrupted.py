"""Interrupted equals uninterrupted: real processes, killed at any moment, leave what one undisturbed process leaves."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.reliability.figures import Figures
from tests.reliability.processes import PATIENCE, Ended, Fate, fresh, run
from tests.reliability.runs import RECIPES, assert_equal_runs, begin, go_on, one_student, write_recipe

KILLS = 12  # for each recipe
AT_WRITES = 4
FRESH = 3
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
# A killed process, one that had not set up its own handler, one that stopped by itself.
EXPECTED = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {-signal.SIGTERM, 143}}


@pytest.fixture
def seed(figures: Figures) -> int:
    """Another one in each session, unless the environment says which."""
    drawn = int(os.environ.get("BLOCKKD_KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"moments are drawn from BLOCKKD_KILL_SEED={drawn}")
    figures.note("kill moments drawn from seed", str(drawn))
    return drawn


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_random_moments(recipe: str, tmp_path: Path, seed: int, figures: Figures) -> None:
    """SIGKILL and SIGTERM, from the first moment of the process to the last, until so many have hit."""
    write_recipe(tmp_path, RECIPES[recipe])
    run(["--version"], tmp_path)  # the first process waits for the imports
    whole = run(begin("whole"), tmp_path)
    assert whole.code == 0, whole.said
    draw, kills, runs = random.Random(seed), 0, 0
    while kills < KILLS:
        output = f"run_{runs}"
        runs += 1
        ended = None
        while ended is None or ended.code != 0:
            moment = draw.uniform(0.0, whole.seconds)
            fate = Fate(after=moment, signals=(draw.choice(SIGNALS),)) if kills < KILLS else None
            ended = run(go_on(tmp_path, output), tmp_path, fate)
            if ended.code != 0:
                check_killed(ended, fate)
                kills += 1
        assert_equal_runs(tmp_path / "whole", tmp_path / output)
    figures.count("kills at random moments survived", kills)
    figures.count("runs compared", runs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_while_it_writes(recipe: str, tmp_path: Path, seed: int, figures: Figures) -> None:
    """Killed before a flush to the disk or a renaming, of which every file of the run has some."""
    write_recipe(tmp_path, RECIPES[recipe])
    whole = run(begin("whole"), tmp_path)
    assert whole.writes > 50
    for number, at_write in enumerate(random.Random(seed).sample(range(1, whole.writes + 1), AT_WRITES)):
        output = f"run_{number}"
        ended = run(begin(output), tmp_path, Fate(at_write=at_write))
        assert ended.code == -signal.SIGKILL, ended.said
        ended = run(go_on(tmp_path, output), tmp_path)
        assert ended.code == 0, f"after write {at_write}: {ended.said}"
        assert_equal_runs(tmp_path / "whole", tmp_path / output)
        figures.count("kills in the middle of a write survived")


def test_killed_since_before_it_was_imported(undisturbed: Path, tmp_path: Path, seed: int, figures: Figures) -> None:
    """New interpreters, of whose life the imports are the larger part."""
    write_recipe(tmp_path, one_student("blockkd.KD"))
    draw, started, life = random.Random(seed), time.monotonic(), PATIENCE
    for kill in range(FRESH + 1):
        process = fresh(go_on(tmp_path, "run") if kill else begin("undisturbed"), tmp_path)
        try:
            process.wait(draw.uniform(0.0, life) if kill else life)
        except subprocess.TimeoutExpired:
            process.send_signal(signum := draw.choice(SIGNALS))
            code = process.wait(PATIENCE)
            said = (tmp_path / "said.txt").read_text()
            assert code in {0, *EXPECTED[signum]}, said
            assert "Traceback" not in said
            figures.count("kills at random moments survived", int(code != 0))
        life = life if kill else time.monotonic() - started
    assert run(go_on(tmp_path, "run"), tmp_path).code == 0
    assert_equal_runs(undisturbed, tmp_path / "run")


def check_killed(ended: Ended, fate: Fate | None) -> None:
    """A killed process says nothing but how to go on."""
    assert fate is not None, ended.said
    assert ended.code in EXPECTED[signal.Signals(fate.signals[0])], f"{fate}: {ended.code}, {ended.said}"
    assert "Traceback" not in ended.said, f"{fate}: {ended.said}"
    if ended.code == 143:
        assert ended.said.splitlines()[-1].startswith("blockkd: terminated"), ended.said
