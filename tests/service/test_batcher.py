"""The queue, with real engines over small graphs and real threads; time is told apart by events, not by clocks."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from service.batcher import Batcher, DeadlinePassedError, EngineFailedError, Key
from service.engine import Engine
from service.images import Canvas
from service.metrics import Metrics

WIDE, TALL = (64, 96), (96, 64)
SEVERAL = 100 * 64 * 96  # a budget that no test here fills


def grey(level: int, size: tuple[int, int] = WIDE) -> Canvas:
    height, width = size
    return Canvas(np.full((height, width, 3), level, np.uint8), size, width, height)


class Gate:
    """An engine that notes its batches and lets none through before it is opened: so what waits is known."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.opened = threading.Event()
        self.batches: list[tuple[tuple[int, int], int]] = []

    def run(self, canvases: list[Canvas], proposals_only: bool) -> Any:
        self.batches.append((canvases[0].size, len(canvases)))
        assert self.opened.wait(10)
        return self.engine.run(canvases, proposals_only)

    def probe(self) -> None:
        self.engine.probe()


@pytest.fixture
def gate(plain: Callable[..., Engine]) -> Gate:
    return Gate(plain())


class Queue:
    """A batcher, and what it reported."""

    def __init__(self, workers: int = 1, batch_pixels: int = SEVERAL) -> None:
        self.metrics = Metrics()
        self.fatal: list[str] = []
        self.batcher = Batcher(workers, batch_pixels, self.metrics, self.fatal.append)

    def submit(self, engine: Any, canvas: Canvas, timeout: float = 10) -> asyncio.Task[Any]:
        return asyncio.create_task(self.batcher.submit(Key(engine, canvas.size, False), canvas, timeout))

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def settled() -> None:
    """Until all that can happen without the gate has happened."""
    await asyncio.sleep(0.05)


def test_an_idle_worker_takes_the_first_at_once_and_then_all_that_waits(gate):
    async def test():
        queue = Queue()
        asked = [queue.submit(gate, grey(level)) for level in (10, 20, 30, 40)]
        await settled()
        assert queue.value("detector_queue_depth") == 3
        gate.opened.set()
        answers = await asyncio.gather(*asked)
        assert gate.batches == [(WIDE, 1), (WIDE, 3)]
        assert [round(float(answer.result.scores[0]) * 255) for answer in answers] == [10, 20, 30, 40]
        assert queue.value("detector_queue_depth") == 0
        assert queue.value("detector_batch_size_sum", graph="full") == 4

    run(test)


def test_what_waits_is_shared_among_the_workers(gate):
    async def test():
        queue = Queue(workers=2)
        asked = [queue.submit(gate, grey(10)) for _ in range(8)]
        await settled()
        gate.opened.set()
        await asyncio.gather(*asked)
        sizes = [size for _, size in gate.batches]
        # one each at once, then never more than half of the six that wait
        assert sizes[:2] == [1, 1]
        assert (max(sizes), sum(sizes)) == (3, 8)

    run(test)


def test_a_batch_stays_within_its_pixels_and_never_mixes_canvases(gate):
    async def test():
        queue = Queue(batch_pixels=3 * 64 * 96)
        asked = [queue.submit(gate, grey(10, size)) for size in [WIDE, *[WIDE, TALL] * 4]]
        await settled()
        gate.opened.set()
        await asyncio.gather(*asked)
        assert gate.batches == [(WIDE, 1), (WIDE, 3), (TALL, 3), (WIDE, 1), (TALL, 1)]

    run(test)


def test_a_canvas_larger_than_the_budget_still_runs_alone(gate):
    async def test():
        gate.opened.set()
        await Queue(batch_pixels=1).submit(gate, grey(10))
        assert gate.batches == [(WIDE, 1)]

    run(test)


def test_the_one_that_has_waited_longest_goes_first(gate):
    async def test():
        queue = Queue()
        asked = [queue.submit(gate, grey(10, size)) for size in (WIDE, TALL, WIDE, WIDE, WIDE)]
        await settled()
        gate.opened.set()
        await asyncio.gather(*asked)
        assert gate.batches == [(WIDE, 1), (TALL, 1), (WIDE, 3)]

    run(test)


def test_who_has_gone_costs_nothing_and_is_counted(gate):
    async def test():
        queue = Queue()
        first, gone, last = (queue.submit(gate, grey(10)) for _ in range(3))
        await settled()
        gone.cancel()
        await settled()
        assert queue.value("detector_queue_depth") == 1
        assert queue.value("detector_cancelled_total", reason="disconnected", stage="queue") == 1
        gate.opened.set()
        await asyncio.gather(first, last)
        assert gate.batches == [(WIDE, 1), (WIDE, 1)]

    run(test)


def test_a_deadline_ends_the_waiting_in_time(gate):
    async def test():
        queue = Queue()
        first = queue.submit(gate, grey(10))
        late = queue.submit(gate, grey(10), timeout=0.1)
        began = time.monotonic()
        with pytest.raises(DeadlinePassedError):
            await late
        assert time.monotonic() - began < 1
        assert queue.value("detector_cancelled_total", reason="deadline", stage="queue") == 1
        gate.opened.set()
        await first
        assert gate.batches == [(WIDE, 1)]

    run(test)


def test_a_deadline_that_passes_inside_the_engine_harms_no_neighbour(gate):
    async def test():
        queue = Queue()
        late = queue.submit(gate, grey(10), timeout=0.1)
        with pytest.raises(DeadlinePassedError):
            await late
        assert queue.value("detector_cancelled_total", reason="deadline", stage="inference") == 1
        gate.opened.set()
        assert (await queue.submit(gate, grey(51))).result.scores[0] == pytest.approx(0.2)

    run(test)


def test_a_picture_that_the_engine_fails_on_fails_alone(plain):
    async def test():
        gate = Gate(plain(fails_on_white=True))
        queue = Queue()
        levels = [10, 20, 255, 30, 40, 255, 50]
        asked = [queue.submit(gate, grey(level)) for level in levels]
        await settled()
        gate.opened.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for level, answer in zip(levels, answers, strict=True):
            if level == 255:
                assert isinstance(answer, EngineFailedError)
                assert str(answer) == ""  # what ONNX Runtime said stays in the log
            else:
                assert answer.result.scores[0] == pytest.approx(level / 255)
        assert gate.batches[:2] == [(WIDE, 1), (WIDE, 6)]
        assert queue.fatal == []  # a blank picture still goes through

    run(test)


def test_an_engine_that_fails_on_everything_is_reported_and_the_queue_goes_on(plain):
    class Dead(Gate):
        def run(self, canvases: list[Canvas], proposals_only: bool) -> Any:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

        def probe(self) -> None:
            self.run([], False)

    async def test():
        queue = Queue()
        dead = Dead(plain())
        for _ in range(2):
            with pytest.raises(EngineFailedError):
                await queue.submit(dead, grey(10))
        assert "every picture" in queue.fatal[0]
        assert "700" not in queue.fatal[0]
        gate = Gate(plain())
        gate.opened.set()
        assert (await queue.submit(gate, grey(255))).result.scores[0] == pytest.approx(1)

    run(test)


def test_even_a_worker_that_returns_nonsense_does_not_stop_the_queue(plain):
    class Mad(Gate):
        def run(self, canvases: list[Canvas], proposals_only: bool) -> Any:
            raise SystemExit  # not even an Exception

    async def test():
        queue = Queue()
        with pytest.raises(EngineFailedError):
            await queue.submit(Mad(plain()), grey(10))
        gate = Gate(plain())
        gate.opened.set()
        await queue.submit(gate, grey(10))

    run(test)
