"""Admission: the decision to accept a request.

A request is examined before its body is read, so that a client need not send an image that would be refused. It
occupies a place only from the last byte of its body to the last byte of its response, so a slow client occupies none.

Clients share the service fairly. A client with many requests in flight cannot keep out one that has none, for which
some places are kept; and its next request is run as if it had arrived later, after the ones it already has.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from service.queue.memory import MemoryBudget
from service.queue.tasks import ClientLoad

LONGEST_RETRY = 60  # seconds
SHARE_FOR_NEW_CLIENTS = 1 / 8  # of the places, in addition to them


class TimeoutTooLongError(Exception):
    """The request's timeout exceeds the longest that the service allows, `longest` seconds."""

    def __init__(self, longest: float) -> None:
        super().__init__(longest)
        self.longest = longest


class OverloadedError(Exception):
    """Too many requests are waiting. `retry_after`: seconds until a new request will probably be admitted."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class Admitted(NamedTuple):
    """A request that was examined and not refused.

    timeout  seconds from the end of the upload to the deadline
    bulk     whether interactive requests are run before it
    client   its name or address
    since    `time.perf_counter()` when it was examined
    load     what its client has in flight, this request included; None before it is admitted
    """

    timeout: float
    bulk: bool
    client: str
    since: float
    load: ClientLoad | None = None


class Admission:
    """Limits the number of requests in flight. Only the event loop uses it, so it needs no lock.

    make_room  called if all places are taken; it may free one
    """

    def __init__(
        self, places: int, longest_timeout: float, expected_wait: Callable[[], float], memory: MemoryBudget
    ) -> None:
        """Allows `places` requests in flight.

        expected_wait  returns the seconds that a new image would wait
        memory         holds the uploads
        """
        self.in_flight = 0
        self._loads: dict[str, ClientLoad] = {}  # of the clients that have requests in flight
        self.make_room: Callable[[], object] = lambda: None
        self._places = places
        self._longest_timeout = longest_timeout
        self._expected_wait = expected_wait
        self._memory = memory

    def examine(self, timeout: float | None = None, bulk: bool = False, client: str = "") -> Admitted:
        """Refuses a request that could not be admitted now.

        Raises TimeoutTooLongError, or OverloadedError if all places are taken or the expected wait exceeds the
        request's timeout.
        """
        if timeout is None:
            timeout = self._longest_timeout
        elif timeout > self._longest_timeout:
            raise TimeoutTooLongError(self._longest_timeout)
        examined = Admitted(timeout, bulk, client, time.perf_counter())
        self._refuse_if_full(examined)
        return examined

    @contextlib.contextmanager
    def admit(self, examined: Admitted, size: int) -> Iterator[Admitted]:
        """Counts a request with an upload of `size` bytes as in flight until the context ends.

        Raises OverloadedError if the last place was taken since the request was examined, or if there is no memory for
        the upload.
        """
        self._refuse_if_full(examined)
        if not self._memory.hold(size):
            raise OverloadedError(self._retry_after(self._expected_wait()))
        load = self._loads.setdefault(examined.client, ClientLoad())
        load.in_flight += 1
        self.in_flight += 1
        try:
            yield examined._replace(load=load)
        finally:
            self.in_flight -= 1
            self._memory.let_go(size)
            load.in_flight -= 1
            if not load.in_flight:
                del self._loads[examined.client]

    def _refuse_if_full(self, examined: Admitted) -> None:
        places = self._places_for(examined)
        wait = self._expected_wait()
        if self.in_flight >= places:
            self.make_room()
        if self.in_flight >= places or wait > examined.timeout:
            raise OverloadedError(self._retry_after(wait))

    @staticmethod
    def _retry_after(wait: float) -> int:
        return min(LONGEST_RETRY, max(1, math.ceil(wait)))

    def _places_for(self, examined: Admitted) -> int:
        """Bulk requests may use only half of the places, so they never shut out interactive requests."""
        if examined.bulk:
            return math.ceil(self._places / 2)
        is_first = examined.client not in self._loads
        return self._places + (math.ceil(self._places * SHARE_FOR_NEW_CLIENTS) if is_first else 0)
