"""Measures contenders in turns.

A round measures every contender at every N once, so that other work on the machine affects all of them. Figures are
medians over the rounds; ratios are computed within a round.

N  images in a batch.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from benchmarks.contenders import Contender, Found, Turn
from benchmarks.machine import gpu_memory
from benchmarks.workers import Failed, Worker
from service.engine.providers import CUDA

Item = TypeVar("Item")

ROUNDS = 5
UNKNOWN = Found(None, None)
LONGEST_TURN = 600.0  # seconds after which a contender is considered hung


@dataclass(frozen=True)
class Entry:
    """A contender before it is built.

    first: the smallest N that it is measured at;  patience: if its first calls, compilation included, took longer than
    this many seconds, no larger N is tried;  longest: seconds after which a call is ended.
    """

    name: str
    build: Callable[[], Contender]
    first: int = 1
    patience: float = LONGEST_TURN
    longest: float = LONGEST_TURN


@dataclass
class Measured:
    """A contender at one N.

    turns: the median seconds of a call, for each turn;  calls: the seconds of every call;  memory: the peak up to this
    N, in bytes;  failed: why there are no figures, or empty.
    """

    name: str
    n: int
    turns: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    memory: int = 0
    found: Found = UNKNOWN
    failed: str = ""

    @property
    def seconds(self) -> float:
        """Seconds of one call: the median over the turns."""
        return statistics.median(self.turns)

    def times_as_fast_as(self, other: "Measured") -> float:
        return statistics.median(theirs / ours for ours, theirs in zip(self.turns, other.turns, strict=True))

    def add(self, turn: Turn) -> None:
        self.turns.append(statistics.median(turn.seconds))
        self.calls.extend(turn.seconds)


def compare(
    entries: Sequence[Entry], batches: Sequence[int], provider: str, seconds: float, rounds: int = ROUNDS
) -> list[Measured]:
    """Measures every entry at every N, at least `seconds` per turn. Ordered by N, then as the entries."""
    results = [Measured(entry.name, n) for n in sorted(batches) for entry in entries if n >= entry.first]
    workers: dict[str, Worker] = {}
    try:
        for entry in with_progress(entries, "first calls"):
            before = gpu_memory() if provider == CUDA else None
            workers[entry.name] = Worker(entry.build)
            own = [result for result in results if result.name == entry.name]
            _first_calls(workers[entry.name], own, entry, before)
        for result in with_progress([one for _ in range(rounds) for one in results], "rounds"):
            if not result.failed:
                _take_turn(workers[result.name], result, seconds)
    finally:
        for worker in workers.values():
            worker.close()
    return results


def with_progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """`items`, with a progress bar if tqdm is installed, which a serving installation lacks."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, leave=False)


def _first_calls(worker: Worker, results: Sequence[Measured], entry: Entry, gpu_before: int | None) -> None:
    """Calls the contender at each N, smallest first: it compiles, allocates, fills caches, and shows its memory.

    gpu_before: bytes in use on the GPU before the worker started; None to measure main memory instead. Both runtimes
    keep the memory that they once took, so the bytes in use afterwards are the peak.
    """
    began = time.monotonic()
    for result in results:
        if (taken := time.monotonic() - began) > entry.patience:
            result.failed = (
                f"not tried: the first calls at smaller N took {taken:.0f} s, more than {entry.patience:.0f} s"
            )
            continue
        try:
            for _ in range(2):  # compiled code may be compiled again for the second
                turn: Turn = worker.ask(result.n, 0.0, seconds=entry.longest)
        except Failed as failure:
            result.failed = str(failure)
            continue
        result.found = turn.found
        result.memory = turn.memory if gpu_before is None else gpu_memory() - gpu_before


def _take_turn(worker: Worker, result: Measured, seconds: float) -> None:
    try:
        result.add(worker.ask(result.n, seconds, seconds=LONGEST_TURN))
    except Failed as failure:
        result.failed = str(failure)
