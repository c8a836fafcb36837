"""Several processes that train together learn what one learns from the whole batch; what fails in one, stops all."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from blockkd.cli import main
from blockkd.models.weights import read_state_dict
from blockkd.runs import read_csv
from tests.reliability import rank_work
from tests.test_cli import SMALL

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.reliability.rank_work"])
PATIENCE = 300.0  # seconds that all may take on a busy machine
TOLERANCE = 1e-10  # in float64
LOGGED = 1e-5  # means are summed up in float32
SINGLE = 1e-4  # a few dozen steps in float32
# Two students and a recorded teacher, in batches of 16 of each process.
RECIPE = SMALL | {
    "data": {"class_path": "tests.test_cli.FewDigits", "init_args": {"batch_size": 16}},
    "teacher": {"network": {"init_args": {"depth": 8, "widths": [8, 8, 16, 32]}}, "epochs": 2},
    "student": {"class_path": "tests.reliability.rank_work.Small"},
    "method": {"class_path": "blockkd.BlockKD", "init_args": {"stones": "last"}},
    "beside": {"kd": {"class_path": "blockkd.KD"}},
    "epochs": 2,
    "record_teacher": True,
    "trainer": {"accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process gives."""
    path = tmp_path_factory.mktemp("ranks")
    torch.save(rank_work.in_one_process(), path / "one_process.pt")
    torch.save(rank_work.with_lightning(path), path / "lightning_one_process.pt")
    return path


def together(work: Callable[..., None], ranks: int, *args: Any) -> list[int | None]:
    """Run a function in so many processes; their exit codes. Kills those that hang."""
    started = time.monotonic()
    processes = [PROCESSES.Process(target=work, args=(rank, ranks, *args)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(PATIENCE - (time.monotonic() - started), 0.0))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_method_learns_what_one_process_learns(
    ranks: int, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    assert together(rank_work.every_method, ranks, folder) == [0] * ranks
    for rank in range(ranks):
        laws = torch.load(folder / f"laws_{ranks}_{rank}.pt", weights_only=True)
        assert max(laws.values()) < TOLERANCE, laws
        apart = torch.load(folder / f"apart_{ranks}_{rank}.pt", weights_only=True)
        assert apart.keys() == rank_work.METHODS.keys()
        assert max(apart.values()) < TOLERANCE, {name: value for name, value in apart.items() if value >= TOLERANCE}
        record_property("reliability", ["rank equality, largest deviation", "largest", max(apart.values())])
    record_property("reliability", ["rank equality, methods × numbers of processes", "sum", len(rank_work.METHODS)])


@pytest.mark.parametrize("ranks", [2, 4])
def test_lightning_module_and_data_share_the_work(
    ranks: int, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    """With shares of different sizes to evaluate, and one record of the teacher; a failure in one process stops all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert together(rank_work.as_lightning_rank, ranks, folder, port) == [0] * ranks
    for rank in range(ranks):
        apart = torch.load(folder / f"lightning_apart_{ranks}_{rank}.pt", weights_only=True)
        weights = {name: value for name, value in apart.items() if not name.endswith("logged")}
        assert max(weights.values()) < TOLERANCE, weights
        assert max(apart.values()) < LOGGED, apart
        record_property("reliability", ["rank equality, largest deviation", "largest", max(weights.values())])
    one, several = ((folder / f"table_{count}" / "filled.u8").read_bytes() for count in (1, ranks))
    assert one == several
    assert set(one) == {0, 1}

    said = [json.loads((folder / f"said_{ranks}_{rank}.json").read_text()) for rank in range(ranks)]
    diverged = {each[0] for each in said}
    assert len(diverged) == 1
    assert "the batch itself holds values that are not finite" in diverged.pop()
    assert said[1][1] == "ValueError: this process alone"
    assert all(each[1].startswith("RuntimeError") for rank, each in enumerate(said) if rank != 1)


def test_no_process_is_left_without_an_image_to_evaluate() -> None:
    data = rank_work.Noise(4)
    trainer = SimpleNamespace(world_size=31, global_rank=30, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    data.trainer = trainer  # type: ignore[assignment]
    assert len(data.val_dataloader()) == 1
    trainer.world_size = 32
    with pytest.raises(ValueError, match="31 images to evaluate cannot be shared by 32 processes"):
        data.val_dataloader()


def test_accumulated_gradients_are_those_of_the_larger_batch() -> None:
    """Where the loss is a mean over samples, and nothing is normalised over the batch; elsewhere they are not."""
    apart = {name: rank_work.accumulation_apart(make) for name, make in rank_work.ACCUMULATING.items()}
    assert max(apart.values()) < TOLERANCE, apart
    others = {name: rank_work.accumulation_apart(make) for name, make in rank_work.NOT_ACCUMULATING.items()}
    assert min(others.values()) > 1e-3, others


def in_two_processes(arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """The command by itself, of which Lightning starts a second one."""
    known = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "PL_GLOBAL_SEED")
    environment = {name: value for name, value in os.environ.items() if name not in known}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "blockkd.cli", *arguments, "--trainer.devices", "2"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.mark.parametrize("command", ["distill", "compare"])
def test_a_command_in_two_processes_does_what_it_does_in_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    recipe = ["small.yaml"] if command == "compare" else ["--config", "small.yaml"]
    assert main([command, *recipe, "--output", "one", "--data.batch_size", "32"]) == 0
    ended = in_two_processes([command, *recipe, "--output", "two"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("kd, seed 0: test accuracy") == 2  # of both students, each once
    assert ended.stdout.count("training seconds" if command == "distill" else "FLOPs × kd  seconds") == 1

    rows = [read_csv(tmp_path / name / "results.csv") for name in ("one", "two")]
    compared = ("method", "seed", "epochs", "val_accuracy", "test_accuracy", "best_epoch", "best_test_accuracy")
    one, two = ([{column: row[column] for column in compared} for row in table] for table in rows)
    assert one == two
    assert [row["method"] for row in one] == ["teacher", "block_kd", "kd", "cross_entropy"]
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors")}
    assert files == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.safetensors")}
    apart = [
        rank_work.deviation(*(read_state_dict(tmp_path / name / file) for name in ("two", "one"))) for file in files
    ]
    assert max(apart) < SINGLE
    record_property("reliability", ["rank equality of commands, float32, largest deviation", "largest", max(apart)])
    filled = [(tmp_path / name / "teacher_logits" / "filled.u8").read_bytes() for name in ("one", "two")]
    assert filled[0] == filled[1] == b"\1" * 256
    assert not list((tmp_path / "two").rglob("*.ckpt"))


def test_a_command_ends_when_one_of_its_processes_fails(tmp_path: Path) -> None:
    content = RECIPE | {"student": {"class_path": "tests.reliability.rank_work.FailsInTheSecond"}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    ended = in_two_processes(["distill", "--config", "small.yaml", "--output", "run"], tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "MemoryError: this process alone" in ended.stderr
    assert "blockkd: another process of this run has ended" in ended.stderr


def test_bad_input_is_refused_before_another_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 0\n")
    begin = ["distill", "--config", "small.yaml", "--trainer.devices", "2"]
    assert main([*begin, "--output", "run"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*begin, "--output", "other", "--trainer.strategy", "ddp_spawn"]) == 2
    assert "take auto, ddp or fsdp" in capsys.readouterr().err
    assert main(["compare", "small.yaml", "--trainer.devices", "2", "--processes", "2"]) == 2
    assert "leave out --processes" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml", "run"}
