"""The raw pipeline: the same images are decoded, resized and run without HTTP. It is an upper bound for any server.

It tries several arrangements of processes, threads and batch size briefly, and measures the fastest.
"""

import itertools
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.load.decode_and_detect import Found, detect
from benchmarks.load.uploads import Upload
from benchmarks.sessions import session_on
from benchmarks.workers import Worker, peak_memory
from service.engine.cores import usable_cores
from service.engine.model import load_model
from service.engine.providers import CUDA, pick_provider, session_options
from service.images.decode import decode
from service.images.fit import Geometry

MOST_PROCESSES = 8  # each holds the model; threads in each process use the remaining cores
PATIENCE = 120.0  # seconds beyond the measurement itself, loading included, after which a process counts as hung


@dataclass(frozen=True)
class Arrangement:
    """How the pipeline uses the cores: `threads` in each of `processes`, and each thread runs `batch` images at once.

    session_threads: threads within a run.
    """

    processes: int
    threads: int
    batch: int = 1
    session_threads: int = 1

    def __str__(self) -> str:
        batch = f", batches of {self.batch}" if self.batch > 1 else ""
        return f"{self.processes} × {self.threads} threads{batch}"


@dataclass(frozen=True)
class Done:
    """latencies: seconds of each batch, from decoding to result;  memory: the peak, in bytes."""

    images: int
    seconds: float
    cpu_seconds: float
    memory: int
    latencies: list[float]


class Raw:
    """Runs the pipeline in separate processes, which stay ready between measurements."""

    def __init__(self, folder: Path, uploads: Sequence[Upload], arrangement: Arrangement) -> None:
        self.arrangement = arrangement
        build = partial(_build, folder, [one.numbered(0) for one in uploads], arrangement)
        self._workers = [Worker(build) for _ in range(arrangement.processes)]

    def measure(self, seconds: float) -> Done:
        """Runs all processes at once for `seconds`. Raises Failed if one of them fails."""
        with ThreadPoolExecutor(len(self._workers)) as threads:
            parts: list[Done] = list(
                threads.map(lambda worker: worker.ask(seconds, seconds=seconds + PATIENCE), self._workers)
            )
        return Done(
            sum(part.images for part in parts),
            # Each process measures its own time, and they do not all start at the same moment.
            sum(part.images for part in parts) / sum(part.images / part.seconds for part in parts),
            sum(part.cpu_seconds for part in parts),
            sum(part.memory for part in parts),
            [latency for part in parts for latency in part.latencies],
        )

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def arrangements(cores: int, provider: str) -> list[Arrangement]:
    """The candidates for the fastest: threads in one process or in several, and batches on a GPU, where they help."""
    processes = min(cores, MOST_PROCESSES)
    tried = [Arrangement(1, cores), Arrangement(processes, math.ceil(cores / processes))]
    if provider == CUDA:
        return [Arrangement(1, cores, batch) for batch in (1, 4, 8)]
    return list(dict.fromkeys(tried))


def lone(cores: int) -> Arrangement:
    """One image after the other, with every core for each run: the shortest possible wait of a single client."""
    return Arrangement(1, 1, session_threads=cores)


def best(folder: Path, uploads: Sequence[Upload], seconds: float) -> Raw:
    """The fastest arrangement, ready; each was tried for `seconds`."""
    raws = [Raw(folder, uploads, one) for one in arrangements(usable_cores(), pick_provider())]
    rates = [(done := raw.measure(seconds)).images / done.seconds for raw in raws]
    fastest = raws[rates.index(max(rates))]
    for raw in raws:
        if raw is not fastest:
            raw.close()
    return fastest


def expected(folder: Path, uploads: Sequence[Upload]) -> list[Found]:
    """The expected answer to each upload."""
    model = load_model(folder)
    session = session_on(pick_provider(), model.graph, session_options(usable_cores()))
    return [detect(session, model.card, [one.numbered(0)])[0] for one in uploads]


def _build(folder: Path, encoded: Sequence[bytes], arrangement: Arrangement) -> Callable[[float], Done]:
    model = load_model(folder)
    session = session_on(pick_provider(), model.graph, session_options(arrangement.session_threads))
    batches = _batches(encoded, model.card.geometry, arrangement.batch)
    for batch in batches:
        detect(session, model.card, batch)

    def measure(seconds: float) -> Done:
        latencies: list[float] = []
        ready = threading.Barrier(arrangement.threads)

        def work(first: int) -> None:
            ready.wait()
            stop = time.perf_counter() + seconds
            for number in itertools.count(first):
                if (began := time.perf_counter()) >= stop:
                    return
                detect(session, model.card, batches[number % len(batches)])
                latencies.append(time.perf_counter() - began)

        spent, began = time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(arrangement.threads) as threads:
            list(threads.map(work, _spread(len(batches), arrangement.threads)))
        taken = time.perf_counter() - began
        images_done = len(latencies) * arrangement.batch
        return Done(images_done, taken, time.process_time() - spent, peak_memory(), latencies)

    return measure


def _batches(encoded: Sequence[bytes], geometry: Geometry, batch: int) -> list[list[bytes]]:
    """Batches of images that share a canvas, such that every image occurs equally often."""
    groups: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for image in encoded:
        groups[decode(image, geometry).size].append(image)
    return [
        [group[(first * batch + n) % len(group)] for n in range(batch)]
        for group in groups.values()
        for first in range(len(group))
    ]


def _spread(length: int, threads: int) -> Iterable[int]:
    """The index of the batch that each thread starts with."""
    return [thread * length // threads for thread in range(threads)]
