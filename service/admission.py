"""Admission: the decision to accept a request, made before its body is read."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

LONGEST_RETRY = 60  # seconds


class TimeoutTooLongError(Exception):
    """The request asks for more time than the service gives: more than `longest` seconds."""

    def __init__(self, longest: float) -> None:
        super().__init__(longest)
        self.longest = longest


class OverloadedError(Exception):
    """Too many requests are waiting. `retry_after`: seconds until there is probably room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class Admitted(NamedTuple):
    """An accepted request.

    timeout  seconds from the end of the upload after which the answer is of no use
    bulk     whether interactive requests go first
    since    `time.perf_counter()` at admission
    """

    timeout: float
    bulk: bool
    since: float


class Admission:
    """The places for requests in flight. It belongs to the event loop, so it needs no lock."""

    def __init__(self, places: int, longest_timeout: float, expected_wait: Callable[[], float]) -> None:
        """`expected_wait`: seconds until an image that arrives now would be run."""
        self.in_flight = 0
        self._places = places
        self._longest_timeout = longest_timeout
        self._expected_wait = expected_wait

    @contextlib.contextmanager
    def admit(self, timeout: float | None = None, bulk: bool = False) -> Iterator[Admitted]:
        """Holds a place for a request until the context ends.

        Bulk requests may take only half of the places, so that they never shut out interactive ones.

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
