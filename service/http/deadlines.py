"""How long a client may take, and the timer that ends its connection when it takes longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple


class Deadlines(NamedTuple):
    """Seconds.

    read   for a complete head, from its first byte or from connecting; and for the rest of a body that is not needed
           any more because its request has been answered
    write  within which the client must take some bytes of the response. It is long, because the system reports what
           was taken in steps of up to a sixteenth of the client's buffer: 16 s apart at 4 kB/s
    """

    read: float = 10.0
    write: float = 60.0


class Alarm:
    """A call in the future that can be put off."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, seconds: float, callback: Callable[..., object], *arguments: object) -> None:
        """Calls `callback` in `seconds`, instead of what was set before."""
        self.clear()
        self._timer = self._loop.call_later(seconds, self._ring, callback, arguments)

    def clear(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _ring(self, callback: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._timer = None
        callback(*arguments)
