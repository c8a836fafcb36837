"""Seconds per step, taken in interleaved rounds, and how fast the device multiplies matrices."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from blockkd.bench.contenders import Contender

LEAST_SECONDS = 0.05  # a turn takes at least so long, so that the clock and the launch of the first kernel do not count
MATRIX = {"cpu": 1536, "cuda": 8192}  # side of the matrices multiplied
PRODUCT = "matrix product"


@dataclass(frozen=True)
class Measured:
    """What was found of one contender.

    Attributes:
        seconds: per step, one number for each round.
        flops: floating-point operations of a step, a multiply-add counted as two.
        saved: bytes kept for the backward pass.
        peak: bytes allocated on the device at the most during a step, beyond what was there; None on the CPU.
    """

    seconds: Sequence[float]
    flops: int
    saved: int
    peak: int | None

    @property
    def median(self) -> float:
        """Seconds per step."""
        return statistics.median(self.seconds)

    def ratio(self, other: "Measured") -> "Spread":
        """Its time as a multiple of the other's, round by round: what slows a whole round down cancels out."""
        return Spread.of([a / b for a, b in zip(self.seconds, other.seconds, strict=True)])


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} … {self.high:.2f})"


def measure(
    contenders: Sequence[Contender], rounds: int, progress: Callable[[str], object] = lambda _: None
) -> tuple[dict[str, Measured], float]:
    """Take the contenders' steps in turns, each once per round, in an order drawn anew for every round.

    Args:
        contenders: of different names, all on one device; warmed up here.
        rounds: how many turns each gets.
        progress: told what is being done.

    Returns:
        What was found of each by its name, and the rate of a large matrix product in the same rounds and the same
        precision, in floating-point operations per second.
    """
    batch = contenders[0].batch
    device = batch.device
    counted = {}
    for contender in contenders:
        progress(f"counting {contender.name}")
        counted[contender.name] = contender.flops(), contender.saved_bytes(), _peak(contender, device)
    side = MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if batch.bf16 else None) for _ in range(2))
    steps: dict[str, Callable[[], object]] = {contender.name: contender.step for contender in contenders}
    seconds = interleaved({**steps, PRODUCT: lambda: torch.mm(a, b)}, rounds, device, progress)
    rate = 2 * side**3 / statistics.median(seconds[PRODUCT])
    return {name: Measured(seconds[name], *counted[name]) for name in steps}, rate


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    progress: Callable[[str], object] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds of each of these functions, in every round."""
    repeats = {}
    for name, step in steps.items():
        progress(f"warming up {name}")
        for _ in range(2):
            _timed(step, 1, device)
        repeats[name] = max(1, round(LEAST_SECONDS / _timed(step, 1, device)))
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for name in order.sample(list(steps), len(steps)):
            gc.collect()  # not inside of what is timed
            seconds[name].append(_timed(steps[name], repeats[name], device) / repeats[name])
    return seconds


def _timed(step: Callable[[], object], times: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        step()
    _wait(device)
    return time.perf_counter() - start


def _peak(contender: Contender, device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    contender.step()  # the optimizer's state is made in the first step
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    contender.step()
    return torch.cuda.max_memory_allocated(device) - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
