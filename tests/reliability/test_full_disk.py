"""A disk that is full, or a file that may not grow: one sentence, exit code 74, and the last good checkpoint stays."""

import errno
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from blockkd.cli import main
from blockkd.durable import write_durably
from tests.reliability.figures import Figures
from tests.reliability.processes import Fate, run
from tests.reliability.runs import assert_equal_runs, begin, go_on, one_student, write_recipe

# What a run writes, but for the figure.
FILES = (
    "kd/seed_0/metrics.csv",
    "kd/seed_0/best.safetensors",
    "kd/seed_0/last.ckpt",
    "kd/seed_0/student.safetensors",
    "kd/seed_0/result.json",
    "run/student.safetensors",
    "run/metrics.csv",
    "run/results.csv",
    "run/teacher.safetensors",
    "teacher/seed_0/result.json",
)


def fill_disk(patch: pytest.MonkeyPatch, file: str, after: int = 0) -> None:
    """Let there be no space for this file, when it has been written so many times."""
    opened, times = Path.open, 0

    class Full:
        def __init__(self, path: Path) -> None:
            self.file: Any = opened(path, "wb")

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> int:
            self.file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_until_full(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        nonlocal times
        folder, _, name = file.rpartition("/")
        if mode == "wb" and str(self.parent).endswith(folder) and self.name.startswith(f".{name}."):
            times += 1
            if times > after:
                return Full(self)
        return opened(self, mode, *arguments, **options)

    patch.setattr(Path, "open", open_until_full)


@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_at_any_file(
    file: str, undisturbed: Path, folder: Path, capsys: pytest.CaptureFixture[str], figures: Figures
) -> None:
    write_recipe(folder, one_student("blockkd.KD"))
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, file)
        assert main(begin("run")) == 74
    said = capsys.readouterr().err.splitlines()[-1]
    path = f"run/{file.removeprefix('run/')}"
    assert said.startswith("blockkd: cannot write "), said
    assert f"{path}: No space left on device; make room" in said
    assert not (folder / path).exists()
    assert not list(folder.rglob("*.draft"))
    assert main(go_on(folder, "run")) == 0
    assert_equal_runs(undisturbed, folder / "run")
    figures.count("full disks survived")


@pytest.mark.parametrize("after", [1, 2])
def test_the_last_good_checkpoint_stays(
    after: int, folder: Path, steps: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(folder, one_student("blockkd.KD", epochs=3))
    assert main(begin("whole")) == 0
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, "last.ckpt", after)
        assert main(begin("run")) == 74
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("make room; go on with: blockkd distill --resume run")
    steps[:] = [None] * 100
    assert main(go_on(folder, "run")) == 0
    assert 100 - len(steps) == 4 * (3 - after), "the epochs that were saved are not trained again"
    assert_equal_runs(folder / "whole", folder / "run")


def test_a_full_disk_while_a_signal_is_answered(
    undisturbed: Path, folder: Path, steps: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The step cannot be saved, and that is what the user hears."""
    write_recipe(folder, one_student("blockkd.KD"))
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, "last.ckpt")
        steps[:] = [signal.SIGTERM]
        assert main(begin("run")) == 74
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert main(go_on(folder, "run")) == 0
    assert_equal_runs(undisturbed, folder / "run")


@pytest.mark.parametrize("limit", [100, 2_000, 10_000, 20_000])
def test_a_limit_of_the_system(limit: int, undisturbed: Path, tmp_path: Path) -> None:
    """No fake: the system refuses to let any file grow beyond the limit, figures and recipes included."""
    write_recipe(tmp_path, one_student("blockkd.KD"))
    assert max(path.stat().st_size for path in undisturbed.rglob("*")) > limit, "the limit limits nothing"
    ended = run(begin("run"), tmp_path, Fate(file_limit=limit))
    assert ended.code == 74, ended.said
    assert "Traceback" not in ended.said
    assert "File too large; make room" in ended.said.splitlines()[-1]
    assert run(go_on(tmp_path, "run"), tmp_path).code == 0
    assert_equal_runs(undisturbed, tmp_path / "run")


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = tmp_path / "file", tmp_path / "kept"
    write_durably(path, b"one", memoryview(b" and two"))
    assert path.read_bytes() == b"one and two"
    write_durably(path, b"three", keep=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"three", b"one and two")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match=r"Input/output error.*file"):
        write_durably(path, b"four", keep=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"three", b"one and two")
    assert sorted(tmp_path.iterdir()) == [path, kept]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its name is there before anything that rests on it is written."""
    done: list[str] = []
    fsync, replace, path = os.fsync, os.replace, tmp_path / "file"

    def flush(file: int) -> None:
        done.append("flush folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "flush file")
        fsync(file)

    monkeypatch.setattr("os.fsync", flush)

    def rename(*names: Path) -> None:
        done.append("rename")
        replace(*names)

    monkeypatch.setattr("os.replace", rename)
    write_durably(path, b"content")
    assert done == ["flush file", "rename", "flush folder"]
