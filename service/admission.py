"""Admission: the decision to accept a request.

A request is examined before its body is read, so that a client need not send an image that would be refused. It
occupies a place only from the last byte of its body to the last byte of its response, so a slow client occupies none.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

LONGEST_RETRY = 60  # seconds


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
    since    `time.perf_counter()` when it was examined
    """

    timeout: float
    bulk: bool
    since: float


class Admission:
    """Limits the number of requests in flight. Only the event loop uses it, so it needs no lock.

    make_room  called if all places are taken; it may free one
    """

    def __init__(self, places: int, longest_timeout: float, expected_wait: Callable[[], float]) -> None:
        """Allows `places` requests in flight. `expected_wait` returns the seconds that a new image would wait."""
        self.in_flight = 0
        self.make_room: Callable[[], object] = lambda: None
        self._places = places
        self._longest_timeout = longest_timeout
        self._expected_wait = expected_wait

    def examine(self, timeout: float | None = None, bulk: bool = False) -> Admitted:
        """Refuses a request that could not be admitted now.

        Raises TimeoutTooLongError, or OverloadedError if all places are taken or the expected wait exceeds the
        request's timeout.
        """
        if timeout is None:
            timeout = self._longest_timeout
        elif timeout > self._longest_timeout:
            raise TimeoutTooLongError(self._longest_timeout)
        examined = Admitted(timeout, bulk, time.perf_counter())
        self._refuse_if_full(examined)
        return examined

    @contextlib.contextmanager
    def admit(self, examined: Admitted) -> Iterator[None]:
        """Counts a request as in flight until the context ends.

        Raises OverloadedError if the last place was taken since the request was examined.
        """
        self._refuse_if_full(examined)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _refuse_if_full(self, examined: Admitted) -> None:
        """Bulk requests may use only half of the places, so they never shut out interactive requests."""
        places = math.ceil(self._places / 2) if examined.bulk else self._places
        wait = self._expected_wait()
        if self.in_flight >= places:
            self.make_room()
        if self.in_flight >= places or wait > examined.timeout:
            raise OverloadedError(min(LONGEST_RETRY, max(1, math.ceil(wait))))
