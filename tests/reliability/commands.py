"""Commands run in this process, and what must hold when their input is refused."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from blockkd.cli import main

Record = Callable[[str, object], None]
KEY = "reliability"  # what the session's closing figures are recorded under


def count(record: Record, name: str, number: int = 1) -> None:
    """Add to a figure that is printed at the end of the session."""
    record(KEY, [name, "sum", number])


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fail where something takes longer, however it hangs (as long as it comes back to Python now and then)."""

    def late(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise AssertionError(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below the folder, with its size and when it was changed."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns if path.is_file() else 0)
        for path in sorted(folder.rglob("*"))
    }


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], seconds: int = 60) -> str:
    """Run a command that must end with exit code 2 and one sentence; gives the sentence."""
    with time_limit(seconds):
        code = main(argv)
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if not line.startswith("blockkd: warning:")]
    assert code == 2, f"{argv} ended with {code}, and said {out[-500:]!r}, {err[-1500:]!r}"
    assert len(said) == 1, err
    assert said[0].startswith("blockkd: "), err
    assert said[0].isprintable(), said[0]
    assert "Traceback" not in out + err
    return said[0].removeprefix("blockkd: ")
