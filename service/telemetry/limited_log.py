"""Log lines about events that a client can cause at will, so that it cannot fill the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

PERIOD = 60.0  # seconds


class LimitedLog:
    """Logs the first warning of each kind at once, and then at most one per PERIOD, with the number left out."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, kind: str, message: str) -> None:
        """`kind`: one of a fixed set of words."""
        now = self._clock()
        if now - self._last.get(kind, -PERIOD) < PERIOD:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._last[kind] = now
        left_out = self._left_out.pop(kind, 0)
        self._log.warning("%s%s", message, f" ({left_out} more since the last such line)" if left_out else "")
