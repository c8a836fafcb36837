"""The command line in processes of its own, which can be killed.

Most are forked from one that has already imported torch and Lightning, since that takes seconds and writes nothing.
"""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["blockkd.commands.distill", "sklearn.datasets", "sklearn.model_selection"])
PATIENCE = 120.0  # seconds that a process may take on a busy machine


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; minus the number of the signal that killed it.
        said: what it printed.
        seconds: how long it lived.
        writes: how often it flushed or renamed a file.
    """

    code: int
    said: str
    seconds: float
    writes: int


@dataclass(frozen=True)
class Fate:
    """What happens to a process.

    Attributes:
        after: seconds until it gets a signal.
        at_file: it gets the signal as soon as this file is there, in the folder where it works.
        signals: which it gets, one right after the other.
        whole_group: whether the processes that it has forked get them too, as from Ctrl-C in a terminal.
        at_write: it kills itself when it flushes or renames a file for the so-many-eth time.
        file_limit: bytes beyond which no file can be written.
    """

    after: float | None = None
    at_file: str | None = None
    signals: tuple[int, ...] = ()
    whole_group: bool = False
    at_write: int | None = None
    file_limit: int | None = None


def run(arguments: list[str], folder: Path, fate: Fate | None = None) -> Ended:
    """Run ``blockkd`` in a folder until it ends, one way or the other."""
    fate = fate or Fate()
    log, writes = folder / "said.txt", FORKS.Value("i", 0)
    started = time.monotonic()
    process: ForkServerProcess = FORKS.Process(target=_main, args=(arguments, str(folder), str(log), writes, fate))
    process.start()
    if fate.after is not None:
        process.join(fate.after)
    while fate.at_file and not (folder / fate.at_file).exists() and time.monotonic() - started < PATIENCE:
        process.join(0.01)
    for signum in fate.signals:
        if process.exitcode is None and process.pid is not None:
            (os.killpg if fate.whole_group else os.kill)(process.pid, signum)
            time.sleep(0.1)
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{arguments} did not end within {PATIENCE:.0f} s: {log.read_text()}")
    said = log.read_text() if log.exists() else ""
    return Ended(process.exitcode, said, time.monotonic() - started, writes.value)


def fresh(arguments: list[str], folder: Path) -> "subprocess.Popen[str]":
    """Start ``blockkd`` as a scheduler does: a new interpreter, which has imported nothing."""
    paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "blockkd.cli", *arguments]
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said, text=True)


def _main(arguments: list[str], folder: str, log: str, writes: Any, fate: Fate) -> None:
    os.chdir(folder)
    if fate.whole_group:
        os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    _count_writes(writes, fate.at_write)
    if fate.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fate.file_limit, fate.file_limit))
    from blockkd.cli import main

    sys.exit(main(arguments))


def _count_writes(writes: Any, fatal: int | None) -> None:
    def counted(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            writes.value += 1
            if writes.value == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
