"""``--trainer.deterministic true`` gives the same bits in every run."""

from pathlib import Path

import torch

from blockkd.cli import main
from tests.reliability.figures import Figures
from tests.reliability.runs import RECIPES, assert_equal_runs, begin, write_recipe


def test_two_runs_are_equal_to_the_bit(folder: Path, figures: Figures) -> None:
    """Whatever the random numbers of the process were before."""
    write_recipe(folder, RECIPES["plain"])
    try:
        for name in ("one", "second"):
            torch.rand(len(name))
            assert main([*begin(name), "--trainer.deterministic", "true"]) == 0
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_runs(folder / "one", folder / "second")
    figures.count("runs compared")
