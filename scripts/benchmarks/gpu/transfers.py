"""C11: what is gained when one thread prepares and unpacks batches while another one's batch runs on the device."""

import threading
import time
from collections.abc import Sequence

from benchmarks.gpu.engines import full_batch, open_engine
from benchmarks.gpu.inputs import largest, on_one_canvas
from benchmarks.gpu.outcome import Finding
from benchmarks.gpu.setup import Clock, Setup
from service.engine.engine import Engine, Result
from service.images.fit import Canvas

LANES = (1, 2)


def transfers(setup: Setup, clock: Clock) -> Finding:
    """Images per second with one thread and with two, and the time of each part of a run. Recorded, not judged."""
    engine = open_engine(setup, setup.torchvision, "fp16", few=True)
    canvas = largest(engine.geometry)
    batch = on_one_canvas(canvas, full_batch(setup, engine, canvas))
    found = Finding(figures=_parts(engine, batch, setup.times(20, 3)))
    expected = engine.run(batch)
    runs = setup.times(60, 4)
    for lanes in LANES:
        rate, answers = _in_lanes(engine, batch, lanes, runs)
        found.figures[f"images/s, {lanes} threads"] = rate
        right = all(len(one.scores) == len(other.scores) for one, other in zip(answers, expected, strict=True))
        found.expect(right, f"with {lanes} threads the answers differ from those of one run after the other")
        if clock.over():
            break
    return found


def _parts(engine: Engine, batch: Sequence[Canvas], runs: int) -> dict[str, float]:
    """Milliseconds of each part of a run, the mean over `runs`."""
    taken = [0.0, 0.0, 0.0]
    for _ in range(runs):
        began = time.perf_counter()
        prepared = engine.prepare(batch)
        ready = time.perf_counter()
        executed = engine.execute(prepared)
        done = time.perf_counter()
        engine.results(executed)
        for place, seconds in enumerate((ready - began, done - ready, time.perf_counter() - done)):
            taken[place] += 1e3 * seconds / runs
    return dict(zip(("ms to prepare", "ms to run", "ms to unpack"), taken, strict=True))


def _in_lanes(engine: Engine, batch: Sequence[Canvas], lanes: int, runs: int) -> tuple[float, list[Result]]:
    """Images per second of `lanes` threads that share the device's turn, and the last answers."""
    turn = threading.Lock()
    answers: list[list[Result]] = []

    def lane() -> None:
        for _ in range(runs // lanes):
            prepared = engine.prepare(batch)
            with turn:
                executed = engine.execute(prepared)
            answers.append(engine.results(executed))

    threads = [threading.Thread(target=lane) for _ in range(lanes)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answers) != lanes * (runs // lanes):
        raise ValueError("a thread failed; its error is above")
    return len(answers) * len(batch) / (time.perf_counter() - began), answers[-1]
