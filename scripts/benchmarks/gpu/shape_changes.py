"""C8: a change of shape costs nothing, because every shape has a session of its own."""

import statistics
from collections.abc import Sequence
from functools import partial

from benchmarks.gpu.engines import full_batch, open_engine, timed
from benchmarks.gpu.inputs import largest, on_one_canvas
from benchmarks.gpu.outcome import Finding
from benchmarks.gpu.setup import Clock, Setup
from service.engine.engine import Engine
from service.images.fit import Canvas

DEARER = 1.2


def shape_changes(setup: Setup, clock: Clock) -> Finding:
    """The time of batches that alternate between two shapes, against the same batches one shape after the other."""
    engine = open_engine(setup, setup.torchvision)
    first = largest(engine.geometry)
    second = first[1], first[0]  # also one of the model's
    most = min(full_batch(setup, engine, canvas) for canvas in (first, second))
    full = on_one_canvas(first, most)
    pairs = {"two canvases": (full, on_one_canvas(second, most))}
    if most > 1:
        pairs["two batch sizes"] = (full, full[:-1])
    found = Finding(figures={"shapes": f"{most} images on {first[0]}×{first[1]} and {second[0]}×{second[1]}"})
    found.expect(engine.fixes_shapes, "the engine fell back to sessions of any shape; the log says why")
    for name, pair in pairs.items():
        dearer = _dearer(engine, pair, setup.times(20, 3), clock)
        found.figures[f"{name}, in turns against steady"] = dearer
        right = setup.rehearsal or dearer <= DEARER  # on the CPU a run takes milliseconds, and other work disturbs it
        found.expect(right, f"{name} in turns take {dearer:.2f} times as long; {DEARER} is allowed")
    return found


def _dearer(engine: Engine, pair: Sequence[Sequence[Canvas]], runs: int, clock: Clock) -> float:
    """Medians of both batches in turns, divided by the medians of each by itself."""
    steady = sum(statistics.median([timed(partial(engine.run, batch)) for _ in range(runs)]) for batch in pair)
    in_turns: list[list[float]] = [[], []]
    for _ in range(runs):
        for batch, times in zip(pair, in_turns, strict=True):
            times.append(timed(partial(engine.run, batch)))
        if clock.over():
            break
    return sum(map(statistics.median, in_turns)) / steady
