"""The devices that run batches, and the budget of each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock, Semaphore

from service.engine.cores import usable_cores
from service.engine.providers import CPU, CUDA, cuda_devices

# The memory for a batch grows with its pixels, so these numbers bound it.
BATCH_PIXELS = {CUDA: 8_000_000, CPU: 250_000}
# On a CPU a batch saves only 1 % of the work, and each of its images waits for all the others. So a batch grows there
# only if the queue is long compared with that wait.
DEEP_QUEUE = 8
LANES_PER_RUN = 2  # on a GPU: while the batch of one thread runs, the other reads the last outputs and prepares a batch
RECOVERY_SECONDS = 300.0  # the memory may have been used by another process and be free again by then

log = logging.getLogger(__name__)


class Budget:
    """The most canvas pixels that a batch may have. It shrinks when memory runs out and then recovers step by step.

    Any thread may use it. Its own lock guards changes; `pixels` is a single number and may be read without the lock.
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
                log.info("the limit for a batch was raised to %d pixels", self.pixels)


@dataclass(eq=False)
class Device:
    """One GPU, or a share of the CPU's cores.

    index    the GPU's number, or the number of the share
    runs     concurrent runs
    cores    threads for a run while no other run is active (1 on a GPU)
    decodes  whether the threads that run batches also decode, as on a CPU, where both need the same cores
    depth    a batch grows by one image for every `depth` waiting images per run
    lanes    threads that form batches, run them and read their outputs, at least `runs`. With more of them, one can
             prepare a batch while the batch of another one runs
    turn     held by each thread while its batch runs
    """

    provider: str
    index: int
    runs: int
    cores: int
    decodes: bool
    depth: int
    budget: Budget = field(repr=False)
    lanes: int = 0
    turn: Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.lanes = max(self.lanes, self.runs)
        self.turn = Semaphore(self.runs)

    @property
    def name(self) -> str:
        return f"{'cuda' if self.provider == CUDA else 'cpu'}:{self.index}"

    @property
    def prepares_ahead(self) -> bool:
        """Whether a batch may be prepared while another one runs."""
        return self.lanes > self.runs

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """The thread counts for which sessions are opened.

        Under load, runs with one thread each process the most images per second. A request that is alone is answered
        fastest by a run on all cores (docs/results.md). Large machines also have a step in between. Further steps would
        cost memory, because each thread count needs its own copy of the weights.
        """
        return tuple(sorted({1, max(1, self.cores // 4), self.cores}))


def find(
    provider: str,
    engines: int | None,
    runs: int | None,
    batch_pixels: int | None,
    threads: int | None,
    gpus: Sequence[int] | None = None,
) -> list[Device]:
    """The devices to use, according to the settings ENGINES, ENGINE_WORKERS, BATCH_PIXELS and ENGINE_THREADS.

    gpus  the indices of the GPUs that may be used (Choice.usable); by default all
    """
    pixels = batch_pixels or BATCH_PIXELS[provider]
    if provider == CUDA:
        indices = range(max(1, cuda_devices())) if gpus is None else gpus
        runs_each = runs or 1
        return [
            Device(CUDA, index, runs_each, 1, False, 1, Budget(pixels), LANES_PER_RUN * runs_each)
            for index in indices[: engines or 256]
        ]
    count, cores = engines or 1, usable_cores()
    runs_each = runs or max(1, cores // count)
    depth = 1 if batch_pixels else DEEP_QUEUE
    return [Device(CPU, index, runs_each, threads or cores, True, depth, Budget(pixels)) for index in range(count)]
