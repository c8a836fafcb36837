"""Figures that the reliability tests print at the end of a session, also when it was run by several processes.

A test says what it has counted or measured through the fixture ``figures``; that travels with the test's report.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import pytest

KEY = "reliability"
Kind = Literal["sum", "largest", "text"]


class Figures:
    """What one test has to say.

    Args:
        record: pytest's ``record_property``.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def count(self, name: str, number: int = 1) -> None:
        """Add to a sum over all tests, such as "kills survived"."""
        self._record(KEY, [name, "sum", number])

    def largest(self, name: str, value: float) -> None:
        """Keep the largest over all tests, such as "rank-equality error"."""
        self._record(KEY, [name, "largest", value])

    def note(self, name: str, text: str) -> None:
        """List what each test says, such as the seeds that were drawn."""
        self._record(KEY, [name, "text", text])


def gather(said: Iterable[tuple[str, Kind, Any]]) -> dict[str, str]:
    """All that tests have said → one line by name, in the order of first mention."""
    values: dict[str, Any] = {}
    for name, kind, value in said:
        if name not in values:
            values[name] = value
        elif kind == "sum":
            values[name] += value
        elif kind == "largest":
            values[name] = max(values[name], value)
        else:
            values[name] = f"{values[name]}, {value}"
    return {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures. Called by pytest, in the process that the others report to."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    tests = [report for report in reports if isinstance(report, pytest.TestReport) and report.when == "call"]
    said: list[Any] = [value for test in tests for key, value in test.user_properties if key == KEY]
    if said:
        terminalreporter.section("reliability")
        for name, value in gather(said).items():
            terminalreporter.write_line(f"{name}: {value}")
