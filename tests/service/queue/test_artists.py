"""Drawing heavy images one at a time, within the memory budget."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from service.images.cost import LIGHT_BYTES, Cost
from service.queue import artists as artists_module
from service.queue.artists import Artists
from service.queue.memory import MemoryBudget, TooMuchMemoryError

UNIT = 2 * LIGHT_BYTES
HANG_SECONDS = 60


class Sketch:
    """A drawing that needs `units`, and stops until it is released."""

    data, media_type, white = b"", "image/png", 65_535

    def __init__(self, units: int) -> None:
        self.units = units
        self.began, self.may_end = threading.Event(), threading.Event()

    def draw(self, before_pixels: Callable[[Image.Image], None] | None = None) -> bytes:
        if before_pixels:
            header = Image.new("L", (1, 1))
            header.info["units"] = self.units
            before_pixels(header)
        self.began.set()
        assert self.may_end.wait(HANG_SECONDS)
        return b"drawn"


@pytest.fixture
def artists(monkeypatch):
    """Makes artists with a budget of four units, of which work may use three."""
    monkeypatch.setattr(
        artists_module.cost, "of_drawing", lambda header, data, kind, white: Cost(header.info["units"] * UNIT, 0.0)
    )
    made: list[Artists] = []

    def make(heavy_threads: int) -> Any:
        made.append(Artists(1, heavy_threads, MemoryBudget(4 * UNIT)))
        return made[-1], made[-1]._memory  # noqa: SLF001

    yield make
    for each in made:
        each.close()


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, HANG_SECONDS)


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test(), HANG_SECONDS))


def test_a_light_drawing_does_not_wait_for_heavy_ones(artists):
    async def test():
        made, memory = artists(1)
        heavy, light = Sketch(1), Sketch(0)
        drawing = asyncio.create_task(made.draw(heavy))
        await until(heavy.began)
        light.may_end.set()
        assert await made.draw(light) == b"drawn"
        assert memory.work == UNIT
        heavy.may_end.set()
        assert await drawing == b"drawn"
        assert memory.work == 0

    run(test)


def test_a_heavy_drawing_waits_for_its_bytes(artists):
    async def test():
        made, memory = artists(2)
        first, second = Sketch(2), Sketch(2)
        drawings = [asyncio.create_task(made.draw(each)) for each in (first, second)]
        await until(first.began)
        first.may_end.set()
        await until(second.began)
        assert drawings[0].done() or memory.work == 2 * UNIT
        second.may_end.set()
        assert await asyncio.gather(*drawings) == [b"drawn", b"drawn"]

    run(test)


def test_a_heavy_drawing_waits_until_clients_have_taken_their_responses(artists):
    async def test():
        made, memory = artists(1)
        memory.hold_anyway(UNIT + 1)
        sketch = Sketch(1)
        sketch.may_end.set()
        drawing = asyncio.create_task(made.draw(sketch))
        while not memory._line:  # noqa: SLF001  until it waits
            await asyncio.sleep(0)
        memory.let_go(1)
        assert await drawing == b"drawn"

    run(test)


def test_a_drawing_that_can_never_fit_is_refused(artists):
    async def test():
        made, _ = artists(1)
        with pytest.raises(TooMuchMemoryError):
            await made.draw(Sketch(4))

    run(test)


def test_a_drawing_that_is_cancelled_gives_its_bytes_back(artists):
    async def test():
        made, memory = artists(2)
        running, waiting = Sketch(2), Sketch(2)
        drawings = [asyncio.create_task(made.draw(running))]
        await until(running.began)
        drawings.append(asyncio.create_task(made.draw(waiting)))
        while not memory._line:  # noqa: SLF001
            await asyncio.sleep(0)
        for each in drawings:
            each.cancel()
        await asyncio.gather(*drawings, return_exceptions=True)
        assert not memory._line  # noqa: SLF001
        assert memory.work == 2 * UNIT  # the thread is still drawing
        running.may_end.set()
        while memory.work:
            await asyncio.sleep(0)
        assert not waiting.began.is_set()

    run(test)
