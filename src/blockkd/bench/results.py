"""What was measured, as table, CSV and targets."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from blockkd.bench.contenders import ALL_FOLDED, KD_FOLDED, LAST_FOLDED, LAST_RECORDED, NAIVE
from blockkd.bench.measuring import Measured, Spread

BASE = "KD"
COLUMNS = ("method", "seconds", "low", "high", "of_kd", "of_kd_low", "of_kd_high", "flops", "share", "saved_bytes")


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached.

    Attributes:
        text: what is compared.
        limit: the ratio is to be this, or less.
        got: the ratio; its quartiles over the rounds are its median where it is counted and not timed.
    """

    text: str
    limit: float
    got: Spread

    @property
    def reached(self) -> bool:
        """By the median."""
        return self.got.median <= self.limit

    def __str__(self) -> str:
        timed = str(self.got) if self.got.low < self.got.high else f"{self.got.median:.2f}"
        return f"{'reached' if self.reached else 'MISSED '}  {self.text}: {timed}, to be at most {self.limit}"


def targets(found: Mapping[str, Measured]) -> list[Target]:
    """What Block-KD is to cost: its arithmetic, and not more."""
    names = ALL_FOLDED, LAST_FOLDED, LAST_RECORDED, KD_FOLDED, NAIVE
    every, last, recorded, kd, naive = (found[name] for name in names)
    memory = every.saved / naive.saved
    return [
        Target("seconds, all stones to KD, both folded", 2.4, every.ratio(kd)),
        Target("seconds, all stones folded to all stones naive", 0.66, every.ratio(naive)),
        Target("seconds, last stone to KD, both folded", 1.05, last.ratio(kd)),
        Target("seconds, last stone recorded to KD with a live teacher, both folded", 0.75, recorded.ratio(kd)),
        Target("saved activations, all stones folded to all stones naive", 0.6, Spread(memory, memory, memory)),
    ]


def table(found: Mapping[str, Measured], rate: float) -> Table:
    """One row per method.

    Args:
        found: by name; ``"KD"`` is what others are compared with.
        rate: floating-point operations per second of a large matrix product.
    """
    rounds = len(found[BASE].seconds)
    table = Table(
        caption=f"medians of {rounds} interleaved rounds, with quartiles; of KD: round by round. A multiply-add is two "
        f"FLOPs. Share: of the {rate / 1e9:,.0f} GFLOP/s of a large matrix product here. Saved: for the backward pass."
    )
    table.add_column("method")
    on_device = any(measured.peak is not None for measured in found.values())
    for title in ("ms / step", "of KD", "GFLOP / step", "share", "saved MiB", *(["peak MiB"] if on_device else [])):
        table.add_column(title, justify="right")
    for name, measured in found.items():
        spread = Spread.of([1000 * second for second in measured.seconds])
        peak = [] if measured.peak is None else [f"{measured.peak / 2**20:,.1f}"]
        table.add_row(
            name,
            f"{spread.median:,.1f} ({spread.low:,.1f} … {spread.high:,.1f})",
            str(measured.ratio(found[BASE])),
            f"{measured.flops / 1e9:,.2f}",
            f"{measured.flops / measured.median / rate:.0%}",
            f"{measured.saved / 2**20:,.1f}",
            *peak,
        )
    return table


def write_csv(found: Mapping[str, Measured], rate: float, path: Path) -> None:
    """One row per method; times in seconds, with quartiles."""
    rows: list[Sequence[object]] = []
    for name, measured in found.items():
        seconds, ratio = Spread.of(measured.seconds), measured.ratio(found[BASE])
        times = (seconds.median, seconds.low, seconds.high, ratio.median, ratio.low, ratio.high)
        share = measured.flops / measured.median / rate
        peak = "" if measured.peak is None else measured.peak
        rows.append((name, *map(_digits, times), measured.flops, _digits(share), measured.saved, peak))
    _write(path, (*COLUMNS, "peak_bytes"), rows)


def write_rounds(found: Mapping[str, Measured], path: Path) -> None:
    """Seconds per step: one row per round, one column per method."""
    rounds = zip(*(measured.seconds for measured in found.values()), strict=True)
    _write(path, ("round", *found), [(number, *map(_digits, row)) for number, row in enumerate(rounds)])


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _digits(value: float) -> str:
    return f"{value:.5g}" if math.isfinite(value) else ""
