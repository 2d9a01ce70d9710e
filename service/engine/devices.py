"""The devices that run batches: each GPU, or the CPU cores that this process may use; and the budget of each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from service.engine.cores import usable_cores
from service.engine.providers import CPU, CUDA, cuda_devices

# The memory that a batch needs grows with its pixels, so this bounds it.
BATCH_PIXELS = {CUDA: 8_000_000, CPU: 250_000}
# On a CPU a batch saves only 1 % of the work, and each of its images waits for all the others. So there a batch grows
# only if the queue is long compared with that wait.
DEEP_QUEUE = 8
RECOVERY_SECONDS = 300.0  # the memory may have been taken by another process, and may be free again

log = logging.getLogger(__name__)


class Budget:
    """The most canvas pixels that a batch may have: less after memory ran out, then raised again step by step.

    Any thread may use it. A lock of its own guards the changes; `pixels` is one number and may be read without it.
    """

    def __init__(self, pixels: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.pixels = self._configured = pixels
        self._clock = clock
        self._lock = Lock()
        self._changed = -math.inf

    def shrink(self, pixels: int) -> None:
        with self._lock:
            self.pixels = min(self.pixels, pixels)
            self._changed = self._clock()

    def recover(self) -> None:
        """Doubles a reduced budget, up to the configured one, RECOVERY_SECONDS after the last change."""
        if self.pixels == self._configured:
            return
        with self._lock:
            if self._clock() - self._changed > RECOVERY_SECONDS:
                self.pixels = min(self._configured, self.pixels * 2)
                self._changed = self._clock()
                log.info("the limit for a batch is %d pixels again", self.pixels)


@dataclass(eq=False)
class Device:
    """One GPU, or a share of the CPU's cores.

    index    the GPU's number, or the number of the share
    runs     concurrent runs
    cores    threads for a run while nothing else runs (1 on a GPU)
    decodes  whether the threads that run batches also decode: on a CPU both need the same cores
    depth    waiting images per run that make a batch grow by one
    """

    provider: str
    index: int
    runs: int
    cores: int
    decodes: bool
    depth: int
    budget: Budget = field(repr=False)

    @property
    def name(self) -> str:
        return f"{'cuda' if self.provider == CUDA else 'cpu'}:{self.index}"

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """The numbers of threads that sessions are opened for.

        Under load, runs of one thread each give the most images a second. While one request is alone, a run with all
        cores gives the earliest answer (scripts/RESULTS.md). Large machines have a step between. There are not more,
        because each needs the weights in memory once more.
        """
        return tuple(sorted({1, max(1, self.cores // 4), self.cores}))


def find(
    provider: str, engines: int | None, runs: int | None, batch_pixels: int | None, threads: int | None
) -> list[Device]:
    """The devices to use, as the settings ask: ENGINES, ENGINE_WORKERS, BATCH_PIXELS, ENGINE_THREADS."""
    pixels = batch_pixels or BATCH_PIXELS[provider]
    if provider == CUDA:
        count = min(engines or 256, max(1, cuda_devices()))
        return [Device(CUDA, index, runs or 1, 1, False, 1, Budget(pixels)) for index in range(count)]
    count, cores = engines or 1, usable_cores()
    runs_each = runs or max(1, cores // count)
    depth = 1 if batch_pixels else DEEP_QUEUE
    return [Device(CPU, index, runs_each, threads or cores, True, depth, Budget(pixels)) for index in range(count)]
