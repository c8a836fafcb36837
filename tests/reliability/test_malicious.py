"""What a stranger could send: every file of the corpus is refused in one sentence, runs nothing and changes nothing."""

import os
import shutil
import subprocess
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


def test_no_setting_of_the_environment_loosens_it(
    place: Path, refuses: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = place.parent / "canary"
    for name in ("zip format", "old format"):
        refuses([*DISTILL, "--teacher.weights", str(EXECUTING[name](place, canary))])
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


def test_a_main_module_of_a_package_is_not_imported(
    place: Path, refuses: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, package = place.parent / "canary", place / "strangers_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    refuses(["distill", "--student", "strangers_package.__main__.Net"])
    refuses(["distill", "--student", "{class_path: strangers_package.__main__.Net}"])
    assert not canary.exists()


# Runs


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teacher is done and whose student is not."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("blockkd.commands.distill.run_student", lambda *_: False)
        options = ["--method", "KD", "--beside", "{}", "--teacher.epochs", "0", "--epochs", "1", "--output", "run"]
        patch.setattr("blockkd.commands.distill.report", lambda *_: None)
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
    said = refused([*on(data), *column], capsys)
    if "card" in name:
        assert "the card " in said
    if "zip" in name or "tar" in name:
        assert "is an archive" in said
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
    assert name != "PostScript" or "not an image file" in said  # Pillow would look for a program that draws it
    assert not canary.exists()
    assert not (place / "runs").exists()
    count(record_property, REFUSED)


def test_of_a_moving_image_only_the_first_picture_is_read() -> None:
    from blockkd.data.decoding import Decoder

    pixels = Decoder(1, None, None).decode(gif_of(2000), "x")
    assert (pixels == 0).all()


# Memory

BOMBS = [
    *("a packed zip of 1 GiB", "a zip of overlapping entries", "a storage of 2 G numbers in 16 bytes"),
    *("a tensor of 2 G numbers over 4", "a tensor of 2 G numbers, all the same", "64 GiB of zeros by a call"),
    *("64 GiB by an old call", "an absurd memo", "a name of 1 MiB", "20,000 empty tensors"),
]
LAUGHS = ["a thousand million values", "a thousand million values, merged", "a thousand million values in a text"]
IMPORTS = [Path(path).absolute() for path in sys.path if path]
UNDER_A_LIMIT = """
import resource, sys
from blockkd.cli import main
for command in ("distill", "inspect"):
    main([command, "--config", "digits/nothing"])  # imports what the commands import
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for argv in {commands!r}:
    assert main(argv) == 2, argv
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_bombs_take_no_memory(place: Path, record_property: Record) -> None:
    """In a process of its own, of which the peak is taken before and after: less than 300 MiB more for all of them."""
    commands = []
    for number, name in enumerate(BOMBS):
        folder = place / str(number)
        folder.mkdir()
        path = LYING[name](folder, place.parent / "canary")
        commands.append([*DISTILL, "--teacher.weights", str(path)])
    for number, name in enumerate(LAUGHS):
        path = place / f"{number}.yaml"
        path.write_text(RECIPES[name])
        commands.append(["distill", "--config", str(path)])
    code = UNDER_A_LIMIT.format(commands=commands)
    same_imports = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, IMPORTS))}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, env=same_imports
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    taken = int(ran.stdout.split()[-1])
    assert taken < 300
    record_property("reliability", ["memory that bombs took, MiB", "largest", taken])
