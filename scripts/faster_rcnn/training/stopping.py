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

    with _handler(stop, () if under_torchrun() else (signal.SIGTERM,)):
        yield


class StopRequest:
    """Whether a signal has asked the training loop to stop.

    number: the signal that this process has received;  is_wanted_by_any: whether any of several processes had received
    one when they last compared; None if there is only one process.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_wanted_by_any: bool | None = None

    @property
    def is_due(self) -> bool:
        """Whether to stop after this iteration. Several processes all stop after the same one."""
        return self.number is not None if self.is_wanted_by_any is None else self.is_wanted_by_any


@contextmanager
def stop_after_iteration() -> Iterator[StopRequest]:
    """Notes the first SIGTERM or Ctrl-C, for the training loop to look at after each iteration.

    A second one stops at once. Under torchrun it has no effect: a scheduler signals all processes, and torchrun passes
    on to the others what it received itself. What must end at once is killed by torchrun 30 seconds later.
    """
    request, owner = StopRequest(), os.getpid()

    def note(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            _end_at_once(number)
        if request.number is not None and not under_torchrun():
            raise Stopped(number)
        request.number = request.number or number

    with _handler(note, (signal.SIGTERM, signal.SIGINT)):
        yield request


def under_torchrun() -> bool:
    """Whether this process is one of several that train together."""
    return "WORLD_SIZE" in os.environ


@contextmanager
def _handler(handle: Any, signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Installs a handler for some signals where Python allows it: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
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
