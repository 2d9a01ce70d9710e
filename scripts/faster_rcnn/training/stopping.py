"""How a run is stopped from outside: by SIGTERM, as containers and schedulers do, or by Ctrl-C.

Other commands stop at once. Training first finishes its iteration and writes a checkpoint, so that nothing is lost.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """A signal has stopped the command.  number: the signal;  the message is printed."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal, as a shell reports it."""
        return 128 + self.number


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Makes SIGTERM raise `Stopped`, so that temporary files are removed.

    Under torchrun SIGTERM still ends the process at once: a process that waits for another cannot do anything else.
    """
    owner = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker process inherits this handler
            _end_at_once(number)
        raise Stopped(number)

    with _handler(stop, (signal.SIGTERM,)):
        yield


class StopRequest:
    """Whether a signal has asked the training loop to stop, and which."""

    def __init__(self) -> None:
        self.number: int | None = None


@contextmanager
def stop_after_iteration() -> Iterator[StopRequest]:
    """Notes the first SIGTERM or Ctrl-C, for the training loop to look at after each iteration.

    A second one stops at once. The processes of torchrun are not covered, because all of them would have to stop after
    the same iteration.
    """
    request, owner = StopRequest(), os.getpid()

    def note(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            _end_at_once(number)
        if request.number is not None:
            raise Stopped(number)
        request.number = number

    with _handler(note, (signal.SIGTERM, signal.SIGINT)):
        yield request


@contextmanager
def _handler(handle: Any, signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Installs a handler for some signals where Python allows it: in the main thread, and not under torchrun."""
    if threading.current_thread() is not threading.main_thread() or "WORLD_SIZE" in os.environ:
        yield
        return
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _end_at_once(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
