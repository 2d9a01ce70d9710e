"""Calls within one process, timed in turns."""

import statistics
import time
from collections.abc import Callable, Mapping

ROUNDS = 5


def in_turns(parts: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The seconds of one call of each part: the median over rounds that call every part for at least `seconds`."""
    for call in parts.values():
        call()
    rounds = [{name: _seconds_each(call, seconds) for name, call in parts.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(one[name] for one in rounds) for name in parts}


def _seconds_each(call: Callable[[], object], at_least: float) -> float:
    """Seconds of one call: the mean over at least `at_least` seconds of calls."""
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < at_least:
        call()
        count += 1
    return taken / count
