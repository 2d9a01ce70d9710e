"""Which reader gives way. Each response is 1,000 bytes; a reader's rate is what it has received, per second."""

import asyncio
import contextlib

import pytest

from service.http.unsent_responses import PATIENCE, UnsentResponses
from service.queue.memory import MemoryBudget

SIZE = 1000


class Scene:
    def __init__(self, max_bytes: int) -> None:
        self.now = 0.0
        self.dropped: list[str] = []
        self.unsent: dict[str, int] = {}
        self.memory = MemoryBudget()
        self.responses = UnsentResponses(max_bytes, self.memory, lambda: self.now)

    def begins(self, stack: contextlib.ExitStack, name: str, unsent: int) -> None:
        self.unsent[name] = unsent
        stack.enter_context(self.responses.one(SIZE, lambda: self.unsent[name], lambda: self.dropped.append(name)))


def test_the_slowest_reader_is_dropped_when_there_are_too_many_unsent_bytes():
    scene = Scene(max_bytes=2200)
    with contextlib.ExitStack() as stack:
        scene.begins(stack, "slow", 900)
        scene.begins(stack, "slower", 950)
        scene.now = PATIENCE
        scene.begins(stack, "new", 1000)  # 2,850 bytes; without the slower one 1,900, which is less than 0.9 x 2,200
        assert scene.dropped == ["slower"]
        assert scene.responses.bytes == 1900
        assert scene.memory.held == 3 * SIZE  # until the connection of the dropped reader is closed
    assert (scene.responses.bytes, scene.memory.held) == (0, 0)


def test_a_reader_has_some_time_before_it_is_dropped():
    scene = Scene(max_bytes=1500)
    with contextlib.ExitStack() as stack:
        scene.begins(stack, "first", 1000)
        scene.begins(stack, "second", 1000)
        assert scene.dropped == []
        scene.now = PATIENCE
        scene.unsent["second"] = 700
        scene.responses.check()
        assert scene.dropped == ["first"]


@pytest.mark.contract("3.10")
def test_no_image_is_drawn_while_there_are_too_many_unsent_bytes():
    async def test():
        scene = Scene(max_bytes=1500)
        with contextlib.ExitStack() as stack:
            scene.begins(stack, "first", 900)
            await scene.responses.room()  # 900 bytes are within the limit
            with contextlib.ExitStack() as second:
                scene.begins(second, "second", 800)
                waiting = [asyncio.ensure_future(scene.responses.room()) for _ in range(2)]
                await asyncio.sleep(0)
                scene.responses.check()  # 1,700 bytes, and neither reader has had its time
                await asyncio.sleep(0)
                assert not any(each.done() for each in waiting)
                waiting[0].cancel()
                scene.unsent["first"] = 600  # it reads
                scene.responses.check()
                await waiting[1]
                scene.unsent["first"] = 900
                waiting = [asyncio.ensure_future(scene.responses.room())]
                await asyncio.sleep(0)
                assert not waiting[0].done()
            await waiting[0]  # the second response has been sent
        assert scene.dropped == []

    asyncio.run(test())


def test_a_single_response_may_exceed_the_limit():
    scene = Scene(max_bytes=10)
    with contextlib.ExitStack() as stack:
        scene.begins(stack, "only", 1000)
        scene.now = 100
        scene.responses.check()
        assert scene.dropped == []


def test_when_a_place_is_needed_the_slowest_reader_is_dropped():
    scene = Scene(max_bytes=10**6)
    with contextlib.ExitStack() as stack:
        scene.begins(stack, "slow", 999)
        assert not scene.responses.drop_slowest()  # it has not had its time
        scene.now = PATIENCE
        assert scene.responses.drop_slowest()
        assert not scene.responses.drop_slowest()
    assert scene.dropped == ["slow"]
