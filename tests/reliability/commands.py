"""Commands run in this process, and what must hold when their input is refused."""

import io
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType

import pytest

from blockkd.cli import main

Record = Callable[[str, object], None]
KEY = "reliability"  # what the session's closing figures are recorded under


def count(record: Record, name: str, number: int = 1) -> None:
    """Add to a figure that is printed at the end of the session."""
    record(KEY, [name, "sum", number])


class Late(BaseException):
    """Something took too long; no error of the input, so that nobody takes it for one."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fail where something takes longer, however it hangs (as long as it comes back to Python now and then)."""

    def late(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Late(f"still at it after {seconds} s")

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


class Reached(BaseException):
    """Where a command has read and checked its input, and would begin to work."""


def outcome(argv: list[str], seconds: int = 60) -> str | None:
    """Run a command whose work is replaced by ``Reached``.

    Returns:
        None where it got there, otherwise the sentence by which its input was refused.
    """
    out, err = io.StringIO(), io.StringIO()
    with time_limit(seconds), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(argv)
        except Reached:
            return None
    said = [line for line in err.getvalue().splitlines() if not line.startswith("blockkd: warning:")]
    assert code == 2, f"ended with {code}, and said {out.getvalue()[-500:]!r}, {err.getvalue()[-1500:]!r}"
    assert len(said) == 1, err.getvalue()
    assert said[0].startswith("blockkd: "), said
    assert said[0].isprintable(), said
    return said[0].removeprefix("blockkd: ")
