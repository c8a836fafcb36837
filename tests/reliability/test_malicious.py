"""What a stranger could send: every file of the corpus is refused in one sentence, runs nothing and changes nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.reliability.commands import Record, count, listing, refused
from tests.reliability.corpus import EXECUTING, LYING, RECIPES

REFUSED = "malicious files refused"
DISTILL = ["distill", "--config", "digits/block_kd"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with an empty one beside it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refuses(
    place: Path, capsys: pytest.CaptureFixture[str], record_property: Record
) -> Callable[[list[str]], str]:
    """Runs a command that must be refused, leaving all files as they were."""

    def run(argv: list[str]) -> str:
        before = listing(place.parent)
        said = refused(argv, capsys)
        assert listing(place.parent) == before
        return said

    count(record_property, REFUSED)
    return run


@pytest.mark.parametrize("name", EXECUTING)
def test_a_checkpoint_that_would_run_code(name: str, place: Path, refuses: Callable[[list[str]], str]) -> None:
    canary = place.parent / "canary"
    path = EXECUTING[name](place, canary)
    for command in (["evaluate", str(path)], [*DISTILL, "--teacher.weights", str(path)]):
        assert path.name in refuses(command)
    assert not canary.exists()


@pytest.mark.parametrize("name", LYING)
def test_a_checkpoint_that_lies(name: str, place: Path, refuses: Callable[[list[str]], str]) -> None:
    path = LYING[name](place, place.parent / "canary")
    assert path.name in refuses([*DISTILL, "--teacher.weights", str(path)])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name: str, place: Path, refuses: Callable[[list[str]], str]) -> None:
    canary = place.parent / "canary"
    path = place / "recipe.yaml"
    path.write_text(RECIPES[name].replace("CANARY", str(canary)).replace("FOLDER", place.name))
    for command in (["distill", "--config"], ["compare"]):
        refuses([*command, "recipe.yaml"])
    assert not canary.exists()
