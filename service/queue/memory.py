"""The memory budget: one limit in bytes for uploads, responses, and the decoding and drawing of large images.

The budget has two parts, so that neither can stop the other:

*held* bytes belong to clients: uploads, and responses that are not yet sent. A client decides how long it holds them,
so uploads get at most a share of the budget (1 / HELD_SHARE). A response may exceed the share, because it exists
already.

*work* ends by itself: the bytes for decoding or drawing one large image, estimated from its header before it begins.
Work that does not fit waits. Other work that fits may pass it, but only MOST_PASSES times. After that, no work begins
before it, so memory becomes free for it. Because clients cannot hold everything, work that alone fits into the rest
always gets its turn.

Small images need no claim. Their number is limited by the number of threads, and their memory is set aside at start.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

HELD_SHARE = 4
MOST_PASSES = 8


class TooMuchMemoryError(Exception):
    """The work needs more bytes than the budget will ever give it.

    needed, limit  in bytes
    """

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(needed, limit)
        self.needed = needed
        self.limit = limit


@dataclass(eq=False)
class Claim:
    """The bytes that one piece of work needs.

    passed  how often later work has begun before it
    """

    size: int
    passed: int = 0


class MemoryBudget:
    """Counts bytes against `limit`. Any thread may use it. No method waits, so the event loop may call all of them.

    Use on the event loop, for an upload of which `size` more bytes arrived, or for a response:

        if not budget.hold(size): refuse the upload
        budget.hold_anyway(len(body))          # a response exists already, so it is counted in any case
        budget.let_go(size)                    # exactly once for each byte held
    """

    def __init__(self, limit: int = sys.maxsize) -> None:
        self._lock = Lock()
        self._limit = limit
        self._held = 0
        self._work = 0
        self._line: list[Claim] = []  # the claims that wait, in the order of their first attempt
        self._listeners: list[Callable[[], None]] = []

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def held_limit(self) -> int:
        """The most bytes that uploads may hold."""
        return self._limit // HELD_SHARE

    @property
    def largest_work(self) -> int:
        """The most bytes that one piece of work may need."""
        return self._limit - self.held_limit

    @property
    def held(self) -> int:
        return self._held

    @property
    def work(self) -> int:
        return self._work

    def set_limit(self, limit: int) -> None:
        """Changes the limit. Bytes that are in use remain so, even if they exceed the new limit."""
        with self._lock:
            self._limit = limit
        self._notify()

    def on_release(self, listener: Callable[[], None]) -> None:
        """Registers a function that is called when waiting work may fit. Any thread may call it, without a lock."""
        self._listeners.append(listener)

    # --- held by clients -----------------------------------------------------------------------------------------

    def hold(self, size: int) -> bool:
        """Counts `size` bytes of an upload, unless they exceed the share of the held bytes. Returns whether it did."""
        with self._lock:
            if self._held + size > self.held_limit:
                return False
            self._held += size
            return True

    def hold_anyway(self, size: int) -> None:
        """Counts `size` bytes that exist already, such as a response, even if they exceed the share.

        No drawing begins while the share is exceeded, so such bytes cannot grow without limit.
        """
        with self._lock:
            self._held += size

    def let_go(self, size: int) -> None:
        """Gives back bytes that were held. Must be called exactly once for each byte."""
        with self._lock:
            self._held -= size
        self._notify()

    # --- work ----------------------------------------------------------------------------------------------------

    def check(self, size: int) -> None:
        """Raises TooMuchMemoryError if work of `size` bytes can never begin."""
        if size > self.largest_work:
            raise TooMuchMemoryError(size, self.largest_work)

    def begin(self, claim: Claim, produces_response: bool = False) -> bool:
        """Whether the work of `claim` may begin now. If so, its bytes count until `end`.

        If not, the claim waits in line: call `begin` again after a release, or `withdraw` if the work is dropped.

        produces_response  the work must also wait while the held bytes exceed their share

        Raises TooMuchMemoryError if the claim exceeds `largest_work`.
        """
        with self._lock:
            try:
                self.check(claim.size)
            except TooMuchMemoryError:
                self._leave_line(claim)
                raise
            free = self._limit - max(self._held, self.held_limit) - self._work
            overfull = produces_response and self._held > self.held_limit
            if overfull or claim.size > free or self._must_wait_behind(claim):
                if claim not in self._line:
                    self._line.append(claim)
                return False
            self._leave_line(claim, passes=True)
            self._work += claim.size
            return True

    def end(self, claim: Claim) -> None:
        """Gives back the bytes of work that has ended."""
        with self._lock:
            self._work -= claim.size
        self._notify()

    def withdraw(self, claim: Claim) -> None:
        """Takes a claim that has not begun out of the line. Does nothing if the claim does not wait."""
        with self._lock:
            waited = claim in self._line
            self._leave_line(claim)
        if waited:
            self._notify()

    def _must_wait_behind(self, claim: Claim) -> bool:
        for other in self._line:
            if other is claim:
                return False
            if other.passed >= MOST_PASSES:
                return True
        return False

    def _leave_line(self, claim: Claim, passes: bool = False) -> None:
        place = self._line.index(claim) if claim in self._line else len(self._line)
        for other in self._line[:place] if passes else ():
            other.passed += 1
        del self._line[place : place + 1]

    def _notify(self) -> None:
        if self._line:  # a single read; without waiting work, the usual case, this costs nothing
            for listener in self._listeners:
                listener()
