"""What the reliability tests share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from blockkd.cli import main
from blockkd.training import DistillationModule
from tests.reliability.figures import Figures
from tests.reliability.runs import one_student, write_recipe


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """Takes the figures that are printed at the end of the session."""
    return Figures(record_property)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``one_student("blockkd.KD")`` leaves when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_recipe(folder, one_student("blockkd.KD"))
    assert main(["distill", "--config", str(folder / "small.yaml"), "--output", str(folder / "whole")]) == 0
    return folder / "whole"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What comes before the training steps, one entry each: nothing, a signal to this process, or an error."""
    step = DistillationModule.training_step
    plan: list[Any] = []

    def planned(self: DistillationModule, batch: Any, batch_idx: int) -> Tensor:
        fate = plan.pop(0) if plan else None
        if isinstance(fate, BaseException):
            raise fate
        if fate is not None:
            os.kill(os.getpid(), fate)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DistillationModule, "training_step", planned)
    return plan
