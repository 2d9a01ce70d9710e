"""How long a client may take to send and to read, and the timer that ends its connection after that time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple


class Deadlines(NamedTuple):
    """Seconds, and one rate.

    read      for receiving a complete head, from its first byte or from connecting; also for receiving the rest of a
              body whose request has already been answered
    body      for receiving a body that is held back from the application because too many uploads are in progress
    idle      for which a connection may be idle between two requests
    write     for which the client's reading is observed. It is long, because the system reports progress only in steps
              of up to a sixteenth of the client's buffer: every 16 s at 4 kB/s
    min_rate  bytes per second that the client must read in every such period
    """

    read: float = 10.0
    body: float = 20.0
    idle: float = 75.0  # longer than the 60 s of common load balancers, which would otherwise use closed connections
    write: float = 60.0
    min_rate: float = 0.0


class Alarm:
    """A timer for one callback at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, seconds: float, callback: Callable[..., object], *arguments: object) -> None:
        """Calls `callback` in `seconds`. This replaces any call that was set before."""
        self.clear()
        self._timer = self._loop.call_later(seconds, self._ring, callback, arguments)

    def clear(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _ring(self, callback: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._timer = None
        callback(*arguments)
