"""What a stranger could send: every file of the corpus is refused in one sentence, runs nothing and changes nothing."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockkd.cli import main
from tests.reliability.commands import Record, count, listing, refused
from tests.reliability.corpus import (
    BAD_IMAGES,
    DATASETS,
    EXECUTING,
    LYING,
    RECIPES,
    RUNS,
    gif_of,
    image_folder,
)

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
def refuses(place: Path, capsys: pytest.CaptureFixture[str], record_property: Record) -> Callable[[list[str]], str]:
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


def test_nothing_is_imported_that_acts_when_imported(place: Path, refuses: Callable[[list[str]], str]) -> None:
    del place
    for path in ("this.Net", "antigravity.Net", "idlelib.__main__.Net"):
        for value in (path, f"{{class_path: {path}}}"):
            refuses(["distill", "--student", value])
            refuses(["distill", "--method", value])
    assert not {"this", "antigravity", "idlelib"} & set(sys.modules)


# Runs


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teacher is done and whose student is not."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("blockkd.commands.distill.run_student", lambda *arguments: False)
        options = ["--method", "KD", "--beside", "{}", "--teacher.epochs", "0", "--epochs", "1", "--output", "run"]
        patch.setattr("blockkd.commands.distill.report", lambda *arguments: None)
        assert main(["distill", *options]) == 0
    (folder / "run" / "kd" / "seed_0").mkdir(parents=True)
    return folder / "run"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_folder(name: str, place: Path, run_folder: Path, refuses: Callable[[list[str]], str]) -> None:
    outside = place.parent / "outside"
    outside.mkdir()
    shutil.copytree(run_folder, place / "run")
    RUNS[name](place / "run", outside)
    for command in (["distill", "--resume", "run"], ["compare", "--resume", "run"]):
        refuses(command)
    assert not (outside / "canary").exists()


# Datasets


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the library datasets writes stays with the test."""
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def on(data: Path) -> list[str]:
    """A command that reads a dataset and does little else."""
    networks = ["--student", "resnet8", "--teacher.network", "resnet8", "--method", "KD", "--beside", "{}"]
    options = ["--data.val_share", "0", "--data.batch_size", "4", "--data.augmentation", "null"]
    return [*DISTILL, "--data", "HubImages", "--data.path", str(data), *options, *networks]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset(name: str, place: Path, capsys: pytest.CaptureFixture[str], record_property: Record) -> None:
    canary = place.parent / "canary"
    data = DATASETS[name](place, canary)
    before = listing(place)
    column = ["--data.label_column", "label"] if "parquet" in name else []
    refused([*on(data), *column], capsys)
    assert listing(place) == before
    assert not canary.exists()
    count(record_property, REFUSED)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("in_memory", ["true", "false"])
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image(
    name: str, in_memory: str, place: Path, capsys: pytest.CaptureFixture[str], record_property: Record
) -> None:
    canary = place.parent / "canary"
    data = image_folder(place / "data", "0.png", BAD_IMAGES[name](canary))
    said = refused([*on(data), "--data.max_corrupt", "0", "--data.in_memory", in_memory], capsys)
    assert "0.png" in said
    assert not canary.exists()
    assert not (place / "runs").exists()
    count(record_property, REFUSED)


def test_of_a_moving_image_only_the_first_picture_is_read(tmp_path: Path) -> None:
    from blockkd.data.decoding import Decoder

    pixels = Decoder(1, None, None).decode(gif_of(2000), "x")
    assert (pixels == 0).all()
