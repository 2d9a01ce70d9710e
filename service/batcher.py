"""The queue before the engine: batches, deadlines, cancellation (contract 5).

Work-conserving: an idle worker takes what waits, at once; a batch forms only while all workers are busy. There is no
delay to tune. What waits is kept by batch key (a batch never mixes models, canvases or graphs); the key whose head has
waited longest goes first, so no size can starve another.

All state belongs to the event loop and is only touched there, so there are no locks, and no loop of our own that an
exception could end: every arrival and every finished batch starts what can be started.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from service.engine import Engine, Result
from service.images import Canvas
from service.metrics import Metrics

log = logging.getLogger(__name__)


class DeadlinePassedError(Exception):
    """The answer would have come too late."""


class EngineFailedError(Exception):
    """The engine failed on this very picture."""


class Key(NamedTuple):
    """What the members of a batch share."""

    engine: Engine
    canvas: tuple[int, int]
    proposals_only: bool


class Answer(NamedTuple):
    """A picture's result, and where its time went (seconds)."""

    result: Result
    queue: float
    inference: float


@dataclass(eq=False)
class Entry:
    """One picture in the queue, and the future that its caller awaits."""

    canvas: Canvas
    future: asyncio.Future[Answer]
    arrived: float = field(default_factory=time.monotonic)


class Ran(NamedTuple):
    """What a worker brings back: a result or a failure for each picture, when it ran, and why the engine is dead."""

    results: list[Result | EngineFailedError]
    began: float
    ended: float
    fatal: str | None


class Batcher:
    """Gives pictures to `workers` threads in batches of at most `batch_pixels` pixels of canvas."""

    def __init__(self, workers: int, batch_pixels: int, metrics: Metrics, on_fatal: Callable[[str], None]) -> None:
        """`on_fatal` is told when an engine no longer survives even a blank picture."""
        self._workers = self._idle = workers
        self._batch_pixels = batch_pixels
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="engine")
        self._waiting: dict[Key, deque[Entry]] = {}

    async def submit(self, key: Key, canvas: Canvas, timeout: float) -> Answer:
        """The answer for `canvas`. Cancel the call when the client has gone: what still waits then costs nothing.

        Raises DeadlinePassedError after `timeout` seconds, EngineFailedError if the engine fails on this picture.
        """
        entry = Entry(canvas, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(key, deque()).append(entry)
        self._metrics.queue_depth.inc()
        self._start_batches()
        try:
            async with asyncio.timeout(timeout):
                return await entry.future
        except TimeoutError as error:
            self._forget(key, entry, "deadline")
            raise DeadlinePassedError from error
        except asyncio.CancelledError:
            self._forget(key, entry, "disconnected")
            raise

    def close(self) -> None:
        """Ends the threads once their batches are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _forget(self, key: Key, entry: Entry, reason: str) -> None:
        """Takes out an entry that nobody awaits; one that is already in the engine runs on, its answer unread."""
        queue = self._waiting.get(key, deque())
        waiting = entry in queue
        if waiting:
            queue.remove(entry)
            self._metrics.queue_depth.dec()
            if not queue:
                del self._waiting[key]
        self._metrics.cancelled.labels(reason, "queue" if waiting else "inference").inc()

    def _start_batches(self) -> None:
        while self._idle and self._waiting:
            key, entries = self._take()
            self._idle -= 1
            canvases = [entry.canvas for entry in entries]
            job = asyncio.get_running_loop().run_in_executor(self._threads, run_apart, key, canvases)
            job.add_done_callback(partial(self._finish, key, entries))

    def _take(self) -> tuple[Key, list[Entry]]:
        """The next batch: from the key whose head has waited longest, within the budget and the worker's share.

        What waits is shared among all workers, not only the idle ones, for the busy ones will soon be free: a worker
        that takes everything would leave the others without work.
        """
        key = min(self._waiting, key=lambda key: self._waiting[key][0].arrived)
        queue = self._waiting[key]
        share = math.ceil(sum(map(len, self._waiting.values())) / self._workers)
        budget = max(1, self._batch_pixels // math.prod(key.canvas))
        entries = [queue.popleft() for _ in range(min(share, budget, len(queue)))]
        if not queue:
            del self._waiting[key]
        self._metrics.queue_depth.dec(len(entries))
        return key, entries

    def _finish(self, key: Key, entries: list[Entry], job: asyncio.Future[Ran]) -> None:
        self._idle += 1
        try:
            ran = job.result()
        except BaseException:  # not even the isolation below held; fail these, serve the rest
            log.exception("a batch of %d was lost", len(entries))
            now = time.monotonic()
            ran = Ran([EngineFailedError()] * len(entries), now, now, None)
        for entry, result in zip(entries, ran.results, strict=True):
            if entry.future.done():  # its client has gone meanwhile
                continue
            if isinstance(result, EngineFailedError):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(Answer(result, ran.began - entry.arrived, ran.ended - ran.began))
        if ran.fatal:
            self._on_fatal(ran.fatal)
        self._observe(key, entries)
        self._start_batches()

    def _observe(self, key: Key, entries: list[Entry]) -> None:
        self._metrics.batch_size.labels("proposals" if key.proposals_only else "full").observe(len(entries))
        covered = sum(entry.canvas.pixels.shape[0] * entry.canvas.pixels.shape[1] for entry in entries)
        self._metrics.padding.observe(1 - covered / (math.prod(key.canvas) * len(entries)))


def run_apart(key: Key, canvases: Sequence[Canvas]) -> Ran:
    """Runs a batch; one that fails is halved until the culprit is alone, so that only the culprit fails.

    Halving also answers a batch that is too large for the GPU's memory. After a failure the engine is tried on a blank
    picture: a dead CUDA context fails that too, and never recovers.
    """
    began = time.monotonic()
    results = _run_halving(key, canvases)
    fatal = None
    if any(isinstance(result, EngineFailedError) for result in results):
        try:
            key.engine.probe()
        except Exception as error:
            log.exception("the engine fails on a blank picture too")
            fatal = f"the engine fails on every picture ({type(error).__name__}); the log has the reason"
    return Ran(results, began, time.monotonic(), fatal)


def _run_halving(key: Key, canvases: Sequence[Canvas]) -> list[Result | EngineFailedError]:
    try:
        return list(key.engine.run(canvases, key.proposals_only))
    except Exception:
        if len(canvases) == 1:
            log.exception("the engine failed on a picture of %d x %d", canvases[0].width, canvases[0].height)
            return [EngineFailedError()]
        log.warning("a batch of %d failed; halving it", len(canvases))
    half = len(canvases) // 2
    return _run_halving(key, canvases[:half]) + _run_halving(key, canvases[half:])
