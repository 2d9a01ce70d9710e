"""The responses that clients have not received completely, and which of them gives way.

A response that fits into the system's buffer never gets here. A longer one is kept in memory until its client has read
it, and until then its request stays in flight. If memory or a place in the queue is needed, the slowest reader is
disconnected. While there are too many unsent bytes, no further image is drawn: its response would only add to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.queue.memory import MemoryBudget

PATIENCE = 2.0  # seconds for which a response cannot be displaced
ENOUGH = 0.9  # of the limit; responses are dropped down to this share, so that the next one need not be dropped too


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
        self._next_check = max_bytes
        self._memory = memory
        self._clock = clock
        self._sending: set[Sending] = set()
        self._waiting: set[asyncio.Future[None]] = set()  # for room
        self._at_most = 0  # the sum of all sizes, which is cheap to know and never below `bytes`

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
        self._at_most += size
        self._memory.hold_anyway(size)
        try:
            if self._at_most > self._next_check:
                self.check()
            yield
        finally:
            self._memory.let_go(size)
            self._at_most -= size
            self._sending.discard(sending)
            self._wake_waiting()

    async def room(self) -> None:
        """Returns once the unsent bytes are within the limit."""
        while self._at_most > self.max_bytes and self.bytes > self.max_bytes:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)

    def check(self) -> None:
        """Drops the slowest readers if there are too many unsent bytes. Must be called about every second."""
        unsent = self.bytes
        if unsent > self.max_bytes:
            for each in self._slowest_first():
                if unsent <= self.max_bytes * ENOUGH or len(self._sending) == 1:
                    break
                unsent -= each.unsent()
                self._drop(each)
        self._wake_waiting()
        # How much is unsent is known only by asking the system for each response, so it is not asked at every one.
        self._next_check = self._at_most + self.max_bytes // 8

    def drop_slowest(self) -> bool:
        """Disconnects the slowest reader that may be displaced. Returns whether there was one."""
        slowest = next(iter(self._slowest_first()), None)
        if slowest:
            self._drop(slowest)
        return slowest is not None

    def _slowest_first(self) -> list[Sending]:
        """The responses that have had their time."""
        now = self._clock()
        old = [each for each in self._sending if now - each.began >= PATIENCE]
        return sorted(old, key=lambda each: each.rate(now))

    def _wake_waiting(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def _drop(self, sending: Sending) -> None:
        self._sending.discard(sending)
        sending.drop()
