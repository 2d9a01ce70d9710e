"""What images are run on: each GPU, or the cores that this process may use; with the batch budget of each."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field

from service.engine.engine import CPU, CUDA, cuda_devices, usable_cores

# Bounds memory: what a batch needs grows with its pixels.
BATCH_PIXELS = {CUDA: 8_000_000, CPU: 250_000}
# On a CPU a batch saves 1 % of the work, all of it between runs, and its members wait for each other; so batches grow
# only where the wait is long beside that.
DEEP_QUEUE = 8
RECOVERY_SECONDS = 300.0  # memory may have run out because of another process

log = logging.getLogger(__name__)


class Budget:
    """Pixels of canvas that a batch may have; less when memory ran out, and given back step by step."""

    def __init__(self, pixels: int) -> None:
        self.pixels = self._configured = pixels
        self._changed = -math.inf

    def shrink(self, pixels: int) -> None:
        self.pixels = min(self.pixels, pixels)
        self._changed = time.monotonic()

    def recover(self) -> None:
        """Doubles what was taken away, once nothing has run out for RECOVERY_SECONDS."""
        if self.pixels < self._configured and time.monotonic() - self._changed > RECOVERY_SECONDS:
            self.pixels = min(self._configured, self.pixels * 2)
            self._changed = time.monotonic()
            log.info("batches may have %d pixels again", self.pixels)


@dataclass(eq=False)
class Device:
    """One place to run on.

    runs    how many go on at once        cores    that a lone run may take (1 on a GPU)
    decodes whether the threads that run also decode, as those of a CPU do: it is the same cores either way
    depth   images that wait for each run for every image that a batch may have
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
    def widths(self) -> tuple[int, ...]:
        """Threads that runs are prepared for: one under load, all cores for a lone request, and on large machines a
        step between.

        Runs of one thread each give the most images a second, one run with all threads the soonest answer
        (scripts/RESULTS.md). Each width has its weights in memory once more.
        """
        return tuple(sorted({1, max(1, self.cores // 4), self.cores}))


def find(
    provider: str, engines: int | None, runs: int | None, batch_pixels: int | None, threads: int | None
) -> list[Device]:
    """The devices to use, with the settings' wishes: ENGINES, ENGINE_WORKERS, BATCH_PIXELS, ENGINE_THREADS."""
    pixels = batch_pixels or BATCH_PIXELS[provider]
    if provider == CUDA:
        count = min(engines or 256, max(1, cuda_devices()))
        return [Device(CUDA, index, runs or 1, 1, False, 1, Budget(pixels)) for index in range(count)]
    count, cores = engines or 1, usable_cores()
    each = runs or max(1, cores // count)
    depth = 1 if batch_pixels else DEEP_QUEUE
    return [Device(CPU, index, each, threads or cores, True, depth, Budget(pixels)) for index in range(count)]
