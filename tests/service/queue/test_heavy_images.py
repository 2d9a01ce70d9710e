"""Heavy images: decoded in threads of their own, when the memory budget has room, and never in the way of light ones.

An image of 300 x 200 pixels is heavy here. `Prices` replaces the estimate, so that a test can name the bytes.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from service.images.cost import LIGHT_BYTES, LIGHT_SECONDS, Cost
from service.queue import batcher as batcher_module
from service.queue.batcher import PATIENCE, DeadlinePassedError
from service.queue.memory import MOST_PASSES, TooMuchMemoryError
from tests.service.queue.harness import Hold, Standstill, level_of

UNIT = 2 * LIGHT_BYTES  # the bytes of the smallest heavy image


class Prices:
    """The cost of an image by its width: `width` 300 + n costs n units, 200 takes LIGHT_SECONDS, others nothing.

    Decoding a heavy image stops at `decoding`, and a slow one at `slow`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, standstill: Standstill) -> None:
        self.decoding, self.slow = standstill.hold(), standstill.hold()
        self.began: list[int] = []
        self._decode = batcher_module.decode
        monkeypatch.setattr(batcher_module.cost, "of_decoding", self.price)
        monkeypatch.setattr(batcher_module, "decode", self.decode)

    def price(self, header: Image.Image, data: bytes, geometry: object) -> Cost:
        if header.width > 300:
            return Cost((header.width - 300) * UNIT, 1.0)
        return Cost(1, LIGHT_SECONDS if header.width == 200 else 0.0)

    def decode(self, data: bytes, geometry: Any, max_pixels: int, check: Callable[..., None] | None) -> Any:
        canvas = self._decode(data, geometry, max_pixels, check)
        self.began.append(int(canvas.pixels[0, 0, 0]))
        hold: Hold | None = self.decoding if canvas.width > 300 else self.slow if canvas.width == 200 else None
        if hold:
            hold.stop_here()
        return canvas


@pytest.fixture
def prices(monkeypatch, standstill) -> Prices:
    return Prices(monkeypatch, standstill)


def heavy(units: int) -> tuple[int, int]:
    return (200, 300 + units)


LIGHT, SLOW = (64, 96), (100, 200)


def test_light_images_are_answered_while_all_heavy_threads_decode(run, queue, gate, prices, standstill):
    async def test():
        served = queue(heavy=1, memory=100 * UNIT)
        gate.open()
        large = served.submit(gate, 10, heavy(1))
        waiting = served.submit(gate, 20, heavy(1))
        await standstill.settle()
        assert prices.began == [10]
        assert [level_of(await served.submit(gate, level, LIGHT)) for level in (31, 32, 33)] == [31, 32, 33]
        assert not large.done()
        assert served.memory.work == UNIT
        prices.decoding.open()
        assert [level_of(answer) for answer in await asyncio.gather(large, waiting)] == [10, 20]
        await standstill.settle()
        assert served.memory.work == 0

    run(test)


def test_heavy_images_begin_only_when_their_bytes_fit(run, queue, gate, prices, standstill):
    async def test():
        served = queue(heavy=3, memory=4 * UNIT)  # 3 units for work
        gate.open()
        sent = [served.submit(gate, level, heavy(units)) for level, units in ((10, 2), (20, 2), (30, 1))]
        await standstill.settle()
        assert sorted(prices.began) == [10, 30]  # 2 + 1 units; the third unit passed the two that did not fit
        prices.decoding.let_one_pass()
        prices.decoding.let_one_pass()
        await standstill.settle()
        assert sorted(prices.began) == [10, 20, 30]
        prices.decoding.open()
        assert [level_of(answer) for answer in await asyncio.gather(*sent)] == [10, 20, 30]

    run(test)


def test_an_image_that_waits_for_memory_is_passed_a_limited_number_of_times(run, queue, gate, prices, standstill):
    async def test():
        served = queue(heavy=2, memory=4 * UNIT)
        gate.open()
        first = served.submit(gate, 1, heavy(1))
        await standstill.settle()
        big = served.submit(gate, 2, heavy(3))
        await standstill.settle()
        small = [served.submit(gate, 10 + number, heavy(1)) for number in range(MOST_PASSES + 2)]
        await standstill.settle()
        while 2 not in prices.began:
            assert len(prices.began) <= MOST_PASSES + 1, "the big image starves"
            prices.decoding.let_one_pass()
            await standstill.settle()
        prices.decoding.open()
        await asyncio.gather(first, big, *small)
        assert prices.began.index(2) == MOST_PASSES + 1  # behind the first one and those that passed it

    run(test)


def test_an_image_that_can_never_fit_is_refused_at_once(run, queue, gate, prices, standstill):
    async def test():
        served = queue(memory=4 * UNIT)
        with pytest.raises(TooMuchMemoryError) as caught:
            await served.submit(gate, 10, heavy(4))
        assert (caught.value.needed, caught.value.limit) == (4 * UNIT, 3 * UNIT)
        await standstill.settle()
        assert prices.began == []

    run(test)


def test_an_image_that_no_longer_fits_into_a_smaller_budget_is_refused(run, queue, gate, prices, standstill):
    async def test():
        served = queue(heavy=2, memory=4 * UNIT)
        gate.open()
        first, waiting = served.submit(gate, 10, heavy(2)), served.submit(gate, 20, heavy(2))
        await standstill.settle()
        served.memory.set_limit(2 * UNIT)
        with pytest.raises(TooMuchMemoryError):
            await waiting
        prices.decoding.open()
        assert level_of(await first) == 10

    run(test)


@pytest.mark.parametrize("ends", ["disconnected", "deadline"])
def test_a_heavy_image_whose_client_gives_up_leaves_the_line(run, queue, gate, prices, clock, standstill, ends):
    async def test():
        served = queue(heavy=2, memory=4 * UNIT)
        gate.open()
        first = served.submit(gate, 10, heavy(1))
        await standstill.settle()
        given_up = served.submit(gate, 20, heavy(3), timeout=5.0)
        await standstill.settle()
        assert served.value("detector_queue_depth") == 1
        if ends == "deadline":
            clock.advance(6)
        else:
            given_up.cancel()
        (outcome,) = await asyncio.gather(given_up, return_exceptions=True)
        assert isinstance(outcome, DeadlinePassedError if ends == "deadline" else asyncio.CancelledError)
        assert served.value("detector_queue_depth") == 0
        prices.decoding.open()
        assert level_of(await first) == 10
        assert level_of(await served.submit(gate, 30, heavy(3))) == 30
        assert 20 not in prices.began
        await standstill.settle()
        assert served.memory.work == 0

    run(test)


def test_bytes_are_given_back_if_decoding_fails(run, queue, gate, prices, standstill, monkeypatch):
    async def test():
        served = queue(memory=4 * UNIT)

        def fails(data: bytes, geometry: object, max_pixels: int, check: Callable[..., None] | None) -> None:
            prices._decode(data, geometry, max_pixels, check)  # noqa: SLF001
            raise MemoryError

        monkeypatch.setattr(batcher_module, "decode", fails)
        await asyncio.gather(served.submit(gate, 10, heavy(1)), return_exceptions=True)
        await standstill.settle()
        assert served.memory.work == 0

    run(test)


@pytest.mark.parametrize(
    ("later", "order"),
    [(PATIENCE * LIGHT_SECONDS - 0.1, [10, 30, 20, 25]), (PATIENCE * LIGHT_SECONDS + 0.1, [10, 20, 25, 30])],
)
def test_a_short_image_passes_longer_ones_for_a_limited_time(run, queue, gate, prices, clock, standstill, later, order):
    """One thread decodes a slow image. Two slow ones wait, and `later` seconds after them a short one arrives."""

    async def test():
        served = queue(runs=1)
        gate.open()
        sent = [served.submit(gate, 10, SLOW)]
        await standstill.settle()
        sent += [served.submit(gate, level, SLOW) for level in (20, 25)]
        await standstill.settle()
        clock.advance(later)
        sent.append(served.submit(gate, 30, LIGHT))
        await standstill.settle()
        prices.slow.open()
        await asyncio.gather(*sent)
        assert prices.began == order

    run(test)
