"""A simulated device on a virtual clock, driven by the batcher's own choice, and the best order in hindsight.

A run of n images takes `run[n - 1]` seconds, and `change` more if the shape of the run (canvas and number of images)
is not that of the run before it on the same session, as cuDNN prepares all its convolutions again. All times are in
seconds.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from service.engine import ladder
from service.engine.devices import Budget, Device
from service.engine.providers import CUDA
from service.images.fit import Canvas
from service.queue.batch_choice import BatchChoice
from service.queue.tasks import Task, TaskQueue, Waiter

CANVAS_PIXELS = 16  # of every canvas, so that the device's budget is a number of images


class Arrival(NamedTuple):
    """An image: when it is decoded, and the index of its canvas."""

    time: float
    canvas: int


class Run(NamedTuple):
    """A run of the simulated device: its images are indices into the arrivals."""

    began: float
    ended: float
    canvas: int
    images: tuple[int, ...]
    changed: bool


@dataclass(eq=False)
class SimulatedEngine:
    """A served model and its engine, which takes `run[n - 1]` seconds for n images and `change` more for another shape.

    prefers_same_shape  whether it says so, as an engine on CUDA without fixed shapes does
    rungs               with fixed shapes: seconds of a run, by the batch sizes for which there are sessions
    """

    run: Sequence[float]
    change: float
    prefers_same_shape: bool = True
    rungs: Mapping[int, float] | None = None
    geometry: Any = None

    def engine_on(self, device: Device) -> Any:
        return self

    def images_to_take(self, canvas: tuple[int, int], ready: int, most: int) -> int:
        return ladder.images_to_take(self.rungs, ready, most) if self.rungs else min(ready, most)


def with_fixed_shapes(rungs: Mapping[int, float]) -> SimulatedEngine:
    """An engine with a session for each of these batch sizes, which fills up smaller batches and changes no shape."""
    run = [rungs[ladder.rung_for(images, rungs)] for images in range(1, max(rungs) + 1)]
    return SimulatedEngine(run, 0, prefers_same_shape=False, rungs=rungs)


def canvas_of(index: int) -> tuple[int, int]:
    """A size that is different for each index, with the same number of pixels."""
    return (2**index, CANVAS_PIXELS // 2**index)


def simulate(arrivals: Sequence[Arrival], engine: SimulatedEngine) -> list[Run]:
    """The runs of one device for these arrivals, which come in the order of their times."""
    device = Device(CUDA, 0, 1, 1, False, 1, Budget(len(engine.run) * CANVAS_PIXELS))
    choice, queue = BatchChoice(device, 1), TaskQueue()
    numbers: dict[Task, int] = {}
    runs: list[Run] = []
    now, last = 0.0, None
    while len(numbers) < len(arrivals) or len(queue):
        if not len(queue):
            now = max(now, arrivals[len(numbers)].time)
        while len(numbers) < len(arrivals) and arrivals[len(numbers)].time <= now:
            task = _add(queue, engine, len(numbers), arrivals[len(numbers)])
            numbers[task] = len(numbers)
        chosen = choice.next(queue)
        assert chosen  # an idle device never waits
        images = tuple(numbers[task] for _ in range(chosen.images) if (task := queue.take_ready(chosen.key)))
        shape = (chosen.key.canvas, len(images))
        assert choice.formed(object(), chosen.key, len(images)) == (engine.prefers_same_shape and shape != last)
        ended = now + engine.run[len(images) - 1] + engine.change * (shape != last)
        runs.append(Run(now, ended, arrivals[images[0]].canvas, images, shape != last))
        now, last = ended, shape
    return runs


def _add(queue: TaskQueue, engine: SimulatedEngine, number: int, arrival: Arrival) -> Task:
    """Adds a decoded image whose rank is the time of its arrival."""
    task = Task(b"%d" % number, engine, False, cast(asyncio.AbstractEventLoop, None), arrival.time)
    queue.join(task, Waiter(cast(Any, None), arrival.time, float("inf")))
    assert queue.take_undecoded() is task
    queue.add_ready(task, Canvas(np.zeros((1, 1, 3), np.uint8), canvas_of(arrival.canvas), 1, 1))
    return task


def makespan(runs: Sequence[Run]) -> float:
    return runs[-1].ended


def waits(arrivals: Sequence[Arrival], runs: Sequence[Run]) -> list[float]:
    """For each image, the time from its arrival to the end of its run."""
    ended = {image: run.ended for run in runs for image in run.images}
    return [ended[number] - arrival.time for number, arrival in enumerate(arrivals)]


class Best(NamedTuple):
    """The smallest end of the last run, and the smallest mean wait. Two different orders may reach them."""

    makespan: float
    mean_wait: float


def best(arrivals: Sequence[Arrival], engine: SimulatedEngine, may_idle: bool) -> Best:
    """What is possible for one who knows all arrivals: tries every order of runs and every number of images.

    may_idle  whether the device may wait for an image while others wait for it. The queue never lets it (contract 5.1)

    Images on one canvas go in the order of their arrival, because to exchange two of them never helps.
    """
    canvases = sorted({arrival.canvas for arrival in arrivals})
    times = [sorted(arrival.time for arrival in arrivals if arrival.canvas == canvas) for canvas in canvases]
    everything = tuple(map(len, times))
    # by the number of images done on each canvas, and by the last shape: pairs of (time, sum of the images' ends)
    reached: dict[tuple[int, ...], dict[Any, set[tuple[float, float]]]] = {(0,) * len(times): {None: {(0.0, 0.0)}}}
    for done in itertools.product(*(range(number + 1) for number in everything)):
        for last, pairs in reached.get(done, {}).items():
            for canvas, images in itertools.product(range(len(times)), range(1, len(engine.run) + 1)):
                number = done[canvas] + images
                if number > everything[canvas]:
                    continue
                after, shape = (*done[:canvas], number, *done[canvas + 1 :]), (canvas, images)
                seconds = engine.run[images - 1] + engine.change * (shape != last)
                next_arrival = min(times[c][n] for c, n in enumerate(done) if n < everything[c])
                for time, total in _earliest(pairs) if may_idle else pairs:
                    begins = max(time, times[canvas][number - 1])
                    if may_idle or begins <= max(time, next_arrival):
                        pair = (begins + seconds, total + images * (begins + seconds))
                        reached.setdefault(after, {}).setdefault(shape, set()).add(pair)
    final = [pair for pairs in reached[everything].values() for pair in pairs]
    arrived = sum(arrival.time for arrival in arrivals)
    return Best(min(end for end, _ in final), (min(total for _, total in final) - arrived) / len(arrivals))


def _earliest(pairs: set[tuple[float, float]]) -> list[tuple[float, float]]:
    """The pairs without those that are neither earlier than another one nor have a smaller sum."""
    kept: list[tuple[float, float]] = []
    for time, total in sorted(pairs):
        if not kept or total < kept[-1][1]:
            kept.append((time, total))
    return kept
