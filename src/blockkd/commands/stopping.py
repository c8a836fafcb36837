"""SIGTERM and Ctrl-C: the first lets a training step end and saves, the second ends the process at once."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAID = b"\nblockkd: stopping after this step; a second signal ends at once, without saving\n"


class Terminated(KeyboardInterrupt):
    """SIGTERM came: like Ctrl-C, but a scheduler asked for it and wants to see another exit code."""


class Interruption:
    """Raises at SIGTERM and SIGINT, where there is nothing to save, so that what is open gets closed.

    A context, around a whole command. Python raises out of whatever it is doing, also out of compiled code that takes
    the interruption for an error of its own: what ends in an error after a signal came was ended by the signal.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> "Interruption":
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        for signum in SIGNALS:
            _handle(signum, self._raise)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, trace
        for signum, handler in self._before.items():
            _handle(signum, handler)
        if self.received is not None and isinstance(error, Exception):
            stop = _raised(self.received)
            for note in getattr(error, "__notes__", ()):
                stop.add_note(note)
            raise stop from error

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.received = signum
        if signum == signal.SIGTERM:  # the next one is not to wait for Python
            _handle(signum, signal.SIG_DFL)
        raise _raised(signum)


class Stop:
    """Turns the first signal into a wish that the training fulfils at its next good moment.

    A context, in which it takes the place of the handlers of SIGTERM and SIGINT. Processes that load data are forked
    with these handlers: there the first signal does nothing, so that the step at hand still gets its batch.

    Attributes:
        received: the signal that came, or None.
        signals: which are handled.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.signals: tuple[signal.Signals, ...] = SIGNALS
        self._process = os.getpid()
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> "Stop":
        self._before = {signum: signal.getsignal(signum) for signum in self.signals}
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            _handle(signum, handler)

    def listen(self) -> None:
        """Handle both signals from here on."""
        for signum in self.signals:
            _handle(signum, self._first)

    def raise_if_received(self) -> None:
        """Stop, if that was asked for.

        Raises:
            Terminated: SIGTERM came.
            KeyboardInterrupt: SIGINT came.
        """
        if self.received is not None:
            raise _raised(self.received)

    def _first(self, signum: int, frame: FrameType | None) -> None:
        del frame
        # The system itself ends the process at the next SIGTERM, whatever the process is stuck in; the next Ctrl-C
        # gives the terminal back properly.
        _handle(signal.SIGTERM, signal.SIG_DFL)
        _handle(signal.SIGINT, signal.default_int_handler)
        if os.getpid() == self._process:
            self.received = signum
            os.write(2, SAID)  # print() must not be called in the middle of another print()


def _raised(signum: int) -> KeyboardInterrupt:
    return Terminated() if signum == signal.SIGTERM else KeyboardInterrupt()


def _handle(signum: int, handler: Handler) -> None:
    if threading.current_thread() is threading.main_thread():  # Python allows it there only
        signal.signal(signum, handler)
