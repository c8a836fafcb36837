"""A command in several processes: the first decides, writes and speaks, the others train along.

Lightning starts the others by the same command line, or a scheduler starts all. Each runs the whole command; what hangs
on the state of the folder or the clock, the first decides for all.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import distributed as dist

from blockkd.commands.errors import InvalidInputError
from blockkd.commands.fitting import make_trainer
from blockkd.commands.recipe import TrainerOptions
from blockkd.divergence import DivergedError
from blockkd.ranks import rank, world_size

T = TypeVar("T")

LOST = ("gloo", "nccl", "connection")  # what errors say that are about the other processes, not about this one


def follows(options: TrainerOptions) -> bool:
    """Whether this process is one of several, and not the first; known before they have found each other."""
    node = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")))
    return (getattr(rank_zero_only, "rank", 0) != 0 or node != 0) and make_trainer(options).world_size > 1


def is_first() -> bool:
    """Whether this process decides, writes and speaks; the only one always does."""
    return rank() == 0


def agreed(value: T) -> T:
    """What the first process says, in all of them."""
    if world_size() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def check_strategy(options: TrainerOptions) -> None:
    """Raise InvalidInputError when a strategy starts its processes in the middle of the training."""
    launcher = make_trainer(options).strategy.launcher
    if launcher is not None and not isinstance(launcher, _SubprocessScriptLauncher):
        raise InvalidInputError(
            f"trainer.strategy is {options.strategy!r}, whose processes come and go within the training: "
            "take auto, ddp or fsdp"
        )


@contextmanager
def together(options: TrainerOptions) -> Iterator[None]:
    """Start the processes that are asked for, if they are several; inside, all of them are there.

    Raises:
        SystemExit: another process has ended, of which it has told why; or this one has, and it is not the first.
    """
    strategy = make_trainer(options).strategy
    if strategy.launcher is not None:
        strategy.launcher.launch(strategy.setup_environment)
    if not is_first():
        warnings.simplefilter("ignore")  # the first says the same
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if world_size() == 1:
            raise
        lost = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
        if is_first():
            if not lost:
                raise
            print(f"blockkd: another process of this run has ended: {_first_line(error)}", file=sys.stderr)
            raise SystemExit(1) from error
        if not lost and not isinstance(error, DivergedError | KeyboardInterrupt):
            traceback.print_exc()
        # Were it another code, Lightning would kill the first process before that can say anything.
        raise SystemExit(0) from error


def console() -> Console:
    """Where progress is shown: the terminal's error stream; of several processes the first alone writes there."""
    return Console(stderr=True, quiet=not is_first())


def on_one_device(options: TrainerOptions) -> TrainerOptions:
    """The same options for a single process."""
    device: int | list[int] = options.devices[:1] if isinstance(options.devices, list) else 1
    return replace(options, devices=device, num_nodes=1, strategy="auto")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
