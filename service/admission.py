"""Admission: the decision to accept a request, made before its body is read."""

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
    """An accepted request.

    timeout  seconds from the end of the upload to the deadline
    bulk     whether interactive requests are run before it
    since    `time.perf_counter()` at admission
    """

    timeout: float
    bulk: bool
    since: float


class Admission:
    """Limits the number of requests in flight. Only the event loop uses it, so it needs no lock."""

    def __init__(self, places: int, longest_timeout: float, expected_wait: Callable[[], float]) -> None:
        """Allows `places` requests in flight. `expected_wait` returns the seconds that a new image would wait."""
        self.in_flight = 0
        self._places = places
        self._longest_timeout = longest_timeout
        self._expected_wait = expected_wait

    @contextlib.contextmanager
    def admit(self, timeout: float | None = None, bulk: bool = False) -> Iterator[Admitted]:
        """Counts a request as in flight until the context ends.

        Bulk requests may use only half of the places, so they never shut out interactive requests.

        Raises TimeoutTooLongError, or OverloadedError if all places are taken or the expected wait exceeds the
        request's timeout.
        """
        if timeout is None:
            timeout = self._longest_timeout
        elif timeout > self._longest_timeout:
            raise TimeoutTooLongError(self._longest_timeout)
        places = math.ceil(self._places / 2) if bulk else self._places
        wait = self._expected_wait()
        if self.in_flight >= places or wait > timeout:
            raise OverloadedError(min(LONGEST_RETRY, max(1, math.ceil(wait))))
        self.in_flight += 1
        try:
            yield Admitted(timeout, bulk, time.perf_counter())
        finally:
            self.in_flight -= 1
