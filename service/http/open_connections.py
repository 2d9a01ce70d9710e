"""All open connections, and which of them gives way when there are too many.

An idle connection, on which no request is in progress, costs only a descriptor and some memory. At the limit, the one
that has been idle for longest is closed. It belongs to the client with the most idle connections, so that a client
with many cannot displace those of others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

REST_AFTER = 1.0  # seconds


class Closable(Protocol):
    """A connection, as far as this module is concerned. `peer`: the address of its other end."""

    peer: str

    def evict(self, reason: str) -> None: ...

    def rest(self, seconds: float) -> None: ...

    def close(self) -> None: ...


class OpenConnections:
    """Only the event loop uses it, so it needs no lock."""

    def __init__(self, limit: int, make_room: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """Allows `limit` connections. `make_room` ends some request in progress; it returns whether there was one."""
        self.limit = limit
        self._make_room = make_room
        self._clock = clock
        self._open: set[Closable] = set()
        self._idle: dict[str, dict[Closable, float]] = {}  # since when, by peer, the longest idle first

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Closable) -> None:
        """Adds an idle connection. At the limit another one is closed for it, or if none can be, it is itself."""
        self._open.add(connection)
        if len(self._open) > self.limit and not self._close_longest_idle() and not self._make_room():
            connection.evict("connection_limit")
            return
        self.set_idle(connection)

    def remove(self, connection: Closable) -> None:
        self._open.discard(connection)
        self.set_busy(connection)

    def set_idle(self, connection: Closable) -> None:
        if connection in self._open:
            self._idle.setdefault(connection.peer, {})[connection] = self._clock()

    def set_busy(self, connection: Closable) -> None:
        idle = self._idle.get(connection.peer)
        if idle is not None:
            idle.pop(connection, None)
            if not idle:
                del self._idle[connection.peer]

    def close_all(self) -> None:
        """Closes the connections that are still open, at the end of the service."""
        for connection in [*self._open]:
            connection.close()

    def check(self) -> None:
        """Lets connections rest that have been idle for a while. Must be called about every second."""
        now = self._clock()
        for connections in self._idle.values():
            for connection, since in connections.items():
                if now - since < REST_AFTER:
                    break
                connection.rest(now - since)

    def _close_longest_idle(self) -> bool:
        most = max(self._idle.values(), key=len, default=None)
        if most is None:
            return False
        longest = next(iter(most))
        self.remove(longest)
        longest.evict("connection_limit")
        return True
