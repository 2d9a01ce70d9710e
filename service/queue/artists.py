"""Drawing in threads: a light image as soon as a thread is free, a heavy one also when the memory for it is free."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from PIL import Image

from service.engine.cores import run_in_background
from service.images import cost
from service.images.cost import Cost
from service.images.drawing import Drawing
from service.queue.memory import Claim, MemoryBudget


class _HeavyError(Exception):
    """Drawing stops after the header, because the image is heavy."""

    def __init__(self, cost: Cost) -> None:
        super().__init__(cost)
        self.cost = cost


class Artists:
    """The threads that draw. `draw` belongs to one event loop.

    room  awaited before each drawing; it returns when there is room for another response
    """

    def __init__(self, threads: int, heavy_threads: int, memory: MemoryBudget) -> None:
        self._memory = memory
        self._light = ThreadPoolExecutor(threads, thread_name_prefix="draw")
        self._heavy = ThreadPoolExecutor(heavy_threads, "draw-heavy", initializer=run_in_background)
        self._light_slots = asyncio.Semaphore(threads)
        self._heavy_slots = asyncio.Semaphore(heavy_threads)
        self.room: Callable[[], Awaitable[None]] = _at_once
        self._waiting: set[asyncio.Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        memory.on_release(self._released)

    async def draw(self, drawing: Drawing) -> bytes:
        """The encoded drawing. Raises TooMuchMemoryError, MemoryError, and what `Drawing.draw` raises.

        Cancelling it drops a drawing that waits. One that runs is finished, and its result is discarded.
        """
        self._loop = loop = asyncio.get_running_loop()
        try:
            async with self._light_slots:
                await self.room()
                return await loop.run_in_executor(self._light, drawing.draw, partial(_check_cost, drawing))
        except _HeavyError as heavy:
            claim = Claim(heavy.cost.memory)
        self._memory.check(claim.size)
        async with self._heavy_slots:
            await self.room()
            await self._turn(claim)
            running = self._heavy.submit(drawing.draw)
            running.add_done_callback(lambda _: self._memory.end(claim))  # also if it is cancelled before it begins
            return await asyncio.wrap_future(running)

    def close(self) -> None:
        self._light.shutdown(wait=False, cancel_futures=True)
        self._heavy.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, claim: Claim) -> None:
        """Waits until the memory budget lets the drawing begin."""
        try:
            while not self._memory.begin(claim, produces_response=True):
                released = asyncio.get_running_loop().create_future()
                self._waiting.add(released)
                try:
                    await released
                finally:
                    self._waiting.discard(released)
        except asyncio.CancelledError:
            self._memory.withdraw(claim)
            raise

    def _released(self) -> None:
        """Wakes the drawings that wait for memory. Any thread may call it."""
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for released in self._waiting:
            if not released.done():
                released.set_result(None)


async def _at_once() -> None:
    """There is always room."""


def _check_cost(drawing: Drawing, header: Image.Image) -> None:
    price = cost.of_drawing(header, drawing.data, drawing.media_type, drawing.white)
    if not price.light:
        raise _HeavyError(price)
