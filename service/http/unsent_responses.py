"""The responses that clients have not received completely, and which of them gives way.

A response that fits into the system's buffer never gets here. A longer one is kept in memory until its client has read
it, and until then its request stays in flight. If memory or a place in the queue is needed, the slowest reader is
disconnected.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.queue.memory import MemoryBudget

PATIENCE = 2.0  # seconds for which a response cannot be displaced


@dataclass(eq=False)
class Sending:
    """One response.

    size    bytes of its body
    unsent  returns how many of them the client has not received
    drop    disconnects the client and frees what the request occupies, at once
    """

    size: int
    unsent: Callable[[], int]
    drop: Callable[[], None]
    began: float

    def rate(self, now: float) -> float:
        """Bytes per second that the client has received."""
        return (self.size - self.unsent()) / max(now - self.began, 1e-3)


class UnsentResponses:
    """Only the event loop uses it, so it needs no lock."""

    def __init__(self, max_bytes: int, memory: MemoryBudget, clock: Callable[[], float] = time.monotonic) -> None:
        """Sets the limit.

        max_bytes  of all unsent responses together; a single one may exceed it
        memory     holds the bytes of the responses
        """
        self.max_bytes = max_bytes
        self._memory = memory
        self._clock = clock
        self._sending: set[Sending] = set()

    def __len__(self) -> int:
        return len(self._sending)

    @property
    def bytes(self) -> int:
        return sum(each.unsent() for each in self._sending)

    @contextlib.contextmanager
    def one(self, size: int, unsent: Callable[[], int], drop: Callable[[], None]) -> Iterator[None]:
        """Counts a response until the context ends."""
        sending = Sending(size, unsent, drop, self._clock())
        self._sending.add(sending)
        self._memory.hold_anyway(size)
        try:
            self.check()
            yield
        finally:
            self._memory.let_go(size)
            self._sending.discard(sending)

    def check(self) -> None:
        """Drops the slowest readers while there are too many unsent bytes. Must be called about every second."""
        while len(self._sending) > 1 and self.bytes > self.max_bytes and self.drop_slowest():
            pass

    def drop_slowest(self) -> bool:
        """Disconnects the slowest reader that may be displaced. Returns whether there was one."""
        now = self._clock()
        old = [each for each in self._sending if now - each.began >= PATIENCE]
        slowest = min(old, key=lambda each: each.rate(now), default=None)
        if slowest is None:
            return False
        self._sending.discard(slowest)
        slowest.drop()
        return True
