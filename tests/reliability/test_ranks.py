"""Several processes that train together learn what one learns from the whole batch; what fails in one, stops all."""

import json
import multiprocessing
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reliability import rank_work

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.reliability.rank_work"])
PATIENCE = 120.0  # seconds that all may take on a busy machine
TOLERANCE = 1e-10  # in float64
LOGGED = 1e-5  # means are summed up in float32


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
