"""``blockkd COMMAND``: finds the command, runs it, and says in one sentence what went wrong.

Nothing heavy is imported before the command is known.
"""

import difflib
import os
import select
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO

from blockkd.commands.machine import FLAG, Document, as_json, people_on_the_error_stream
from blockkd.durable import FULL

COMMANDS = {
    "distill": "train a teacher and distil it into a student, by several methods side by side",
    "teach": "train a teacher by itself",
    "compare": "train students by several recipes over the same teacher, data and seeds, in slices of time",
    "bench": "time a training step of every method, and check Block-KD's cost targets",
    "recipes": "list the recipes that there are, or print one as YAML",
    "inspect": "show how both networks are cut, their connectors, and what each stone costs",
    "replay": "take the step again in which a loss stopped being finite, and show where",
    "evaluate": "measure the accuracy of a run's student and teacher",
    "report": "write one page about runs, with figures: curves, stones, calibration, classes, costs, features",
    "export": "write a run's bare student as safetensors, ONNX, torch.export, or for a hub, with a model card",
    "completion": "print a script that completes these commands by the tab key",
}
BAD_INPUT, CANNOT_WRITE, INTERRUPTED, READER_GONE, TERMINATED = 2, 74, 130, 141, 143
CODES = (
    "0 done, 2 input that cannot be used or a loss that became NaN or infinite, 74 the disk is full, "
    "130 interrupted, 141 nobody reads the output, 143 terminated"
)

HELP = """usage: blockkd COMMAND [options]

Distil a trained network into a smaller one.

commands:
{commands}

options:
  --help      show this, or with a command its options
  --json      behind a command: one JSON document on standard output, all else on the error stream
  --version   show the version

Start with: blockkd distill

exit codes: {codes}
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, and what ``--json`` prints; None in a process that only helps another."""

    code: int
    document: Document | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments behind ``blockkd``; by default those of the process.

    Returns:
        The exit code: 0 done, 2 input that cannot be used or a loss that became NaN or infinite, 74 the disk is full,
        130 interrupted (SIGINT), 141 nobody reads the output any more (SIGPIPE), 143 terminated (SIGTERM).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())
        print(HELP.format(commands=commands, codes=CODES), end="")
        return 0
    if arguments[0] == "--version":
        print(f"blockkd {_version()}")
        return 0
    command, *rest = arguments
    wants_json = FLAG in rest and not {"-h", "--help"} & set(rest)
    rest = [argument for argument in rest if argument != FLAG]
    with people_on_the_error_stream() if wants_json else nullcontext():
        outcome = _run(command, rest) if command in COMMANDS else _unknown(command)
    if wants_json and outcome.document is not None:
        print(as_json({"command": command, **outcome.document}))
    return outcome.code


def _unknown(command: str) -> Outcome:
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    return _say(f"unknown command {command!r}; {advice}", BAD_INPUT)


def _run(command: str, arguments: list[str]) -> Outcome:
    from blockkd.commands.stopping import Terminated

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _refusing(command, arguments)
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        return _say(
            _noted("terminated" if terminated else "interrupted", stop), TERMINATED if terminated else INTERRUPTED
        )
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return Outcome(READER_GONE, None)
        if error.errno not in FULL:
            raise
        where = f"cannot write {error.filename}" if error.filename else "cannot write"
        return _say(_noted(f"{where}: {error.strerror}; make room", error), CANNOT_WRITE)
    except SystemExit as stop:  # --help prints and exits
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        return Outcome(code, _failure(f"ended with exit code {code}", code) if code else None)


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more, as behind ``| head``; what is still to be written is dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _refusing(command: str, arguments: list[str]) -> Outcome:
    """Run the command; one sentence for what it cannot use."""
    from blockkd.commands.errors import InvalidInputError
    from blockkd.commands.stopping import Interruption

    try:
        with Interruption():
            document: Document | None = import_module(f"blockkd.commands.{command}").run(arguments)
            sys.stdout.flush()
    except InvalidInputError as error:
        return _say(str(error), BAD_INPUT)
    except (ArithmeticError, ValueError) as error:
        from blockkd.data import ImageFileError
        from blockkd.divergence import DivergedError
        from blockkd.runs import RunFolderError

        if not isinstance(error, DivergedError | ImageFileError | RunFolderError):
            raise
        return _say(str(error), BAD_INPUT)
    return Outcome(0, document)


def _noted(said: str, error: BaseException) -> str:
    """What is said of an error, and what those who handed it on have to add."""
    return "; ".join((said, *getattr(error, "__notes__", ())))


def _say(message: str, code: int) -> Outcome:
    print(f"blockkd: {message}", file=sys.stderr)
    return Outcome(code, _failure(message, code))


def _failure(message: str, code: int) -> dict[str, Any]:
    return {"error": message, "exit_code": code}


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    print(f"blockkd: warning: {message}", file=sys.stderr)


def _version() -> str:
    try:
        return version("blockkd")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
