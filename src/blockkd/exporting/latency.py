"""``--benchmark``: seconds per batch and bytes of teacher, student and exports, side by side on this machine."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from blockkd.bench.measuring import Spread, interleaved
from blockkd.calling import Inputs, logits_of
from blockkd.environment import environment
from blockkd.exporting.calls import length_of, named, to_check
from blockkd.exporting.scores import session

ROUNDS, LARGER = 15, 32
PYTORCH, ONNXRUNTIME = "PyTorch", "onnxruntime"


@dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
        name: teacher, student, ...
        engine: what runs it.
        bytes: that it takes on disk.
        run: makes of a batch a function that takes one step with it.
    """

    name: str
    engine: str
    bytes: int
    run: Callable[[Inputs], Callable[[], object]]


@dataclass(frozen=True)
class Latency:
    """What was found of a contender.

    Attributes:
        contender: what was timed.
        seconds: per batch, one number for each round, by batch size.
        length: tokens in each sequence; None where the inputs are none.
    """

    contender: Contender
    seconds: Mapping[int, Sequence[float]]
    length: int | None = None


def network_contender(name: str, network: nn.Module, size: int) -> Contender:
    """A network under PyTorch."""
    network.eval()

    def step(inputs: Inputs) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return logits_of(network, inputs)

        return run

    return Contender(name, PYTORCH, size, step)


def onnx_contender(name: str, path: Path) -> Contender:
    """A file under onnxruntime, with as many threads as torch has."""
    runs = session(path, torch.get_num_threads())

    def step(inputs: Inputs) -> Callable[[], object]:
        arrays = {key: tensor.numpy() for key, tensor in named(inputs).items()}
        return lambda: runs.run(None, arrays)

    return Contender(name, ONNXRUNTIME, path.stat().st_size, step)


def benchmark(
    contenders: Sequence[Contender], inputs: Inputs, batches: Sequence[int] = (1, LARGER), rounds: int = ROUNDS
) -> list[Latency]:
    """Time all of them in turns, each once per round, on the CPU.

    Args:
        contenders: each by a name and an engine of its own.
        inputs: a batch, for kinds and sizes.
        batches: inputs per batch.
        rounds: how many turns each gets, with each batch.
    """
    seconds: dict[Contender, dict[int, Sequence[float]]] = {contender: {} for contender in contenders}
    gc.freeze()  # or what is collected between two turns would be looked for in all that the libraries hold
    try:
        for size in batches:
            given = to_check(inputs, size)
            steps = {f"{number}": contender.run(given) for number, contender in enumerate(contenders)}
            found = interleaved(steps, rounds, torch.device("cpu"))
            for number, contender in enumerate(contenders):
                seconds[contender][size] = found[f"{number}"]
    finally:
        gc.unfreeze()
    return [Latency(contender, seconds[contender], length_of(inputs)) for contender in contenders]


def latency_table(found: Sequence[Latency]) -> Table:
    """One row per contender: milliseconds per batch (median, quartiles) and bytes."""
    sizes = list(found[0].seconds)
    rounds = len(found[0].seconds[sizes[0]])
    long = "" if found[0].length is None else f", sequences of {found[0].length} tokens"
    table = Table(
        caption=f"on the CPU{long}, {torch.get_num_threads()} threads; ms per batch: medians of {rounds} interleaved "
        "rounds, with quartiles"
    )
    for title in ("network", "engine"):
        table.add_column(title)
    for title in (*(f"ms, batch {size}" for size in sizes), "KiB"):
        table.add_column(title, justify="right")
    for latency in found:
        times = [_milliseconds(latency.seconds[size]) for size in sizes]
        table.add_row(
            latency.contender.name, latency.contender.engine, *times, f"{latency.contender.bytes / 1024:,.1f}"
        )
    return table


def latency_facts(found: Sequence[Latency]) -> dict[str, Any]:
    """The same as plain data, with hardware, threads and versions."""
    rows = [
        {
            "network": latency.contender.name,
            "engine": latency.contender.engine,
            "bytes": latency.contender.bytes,
            "batches": {
                str(size): {"median_seconds": spread.median, "quartiles": [spread.low, spread.high]}
                for size, spread in ((size, Spread.of(seconds)) for size, seconds in latency.seconds.items())
            },
        }
        for latency in found
    ]
    rounds = len(next(iter(found[0].seconds.values())))
    threads = torch.get_num_threads()
    length = {} if found[0].length is None else {"tokens": found[0].length}
    return {"device": "cpu", "threads": threads, "rounds": rounds, **length, "environment": versions(), "rows": rows}


def versions() -> dict[str, str]:
    """Hardware and versions, those of the exporters included."""
    found = environment()
    for package in ("onnx", "onnxscript", "onnxruntime", "timm", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _milliseconds(seconds: Sequence[float]) -> str:
    spread = Spread.of([1000 * second for second in seconds])
    return f"{spread.median:.3g} ({spread.low:.3g} … {spread.high:.3g})"
