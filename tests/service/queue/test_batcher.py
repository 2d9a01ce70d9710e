"""The queue, with real engines over small graphs and real threads; what waits is held by a gate, not by clocks."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from PIL import Image

from service.engine.devices import Budget, Device
from service.engine.engine import Engine
from service.engine.isolation import EngineFailedError, NoMemoryLeftError
from service.engine.providers import CPU, CUDA
from service.images import decode as decode_module
from service.images.decode import ImageError, NotAnImageError
from service.images.fit import Canvas
from service.queue.batcher import Batcher, DeadlinePassedError
from service.telemetry.metrics import Metrics

WIDE, TALL = (64, 96), (96, 64)
SEVERAL = 100 * 64 * 96  # a budget that no test here fills


class Gate:
    """A served model whose engine notes its batches and lets none through before it is opened."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.geometry = engine.card.geometry
        self.opened = threading.Event()
        self.batches: list[tuple[tuple[int, int], int]] = []
        self.levels: list[int] = []
        self.threads: list[int] = []
        self.devices: list[Device] = []

    def engine_on(self, device: Device) -> Any:
        self.devices.append(device)
        return self

    def run(self, canvases: list[Canvas], proposals_only: bool, threads: int) -> Any:
        self.batches.append((canvases[0].size, len(canvases)))
        self.levels += [int(canvas.pixels[0, 0, 0]) for canvas in canvases]
        self.threads.append(threads)
        assert self.opened.wait(10)
        return self.engine.run(canvases, proposals_only)

    def probe(self) -> None:
        self.engine.probe()


@pytest.fixture
def gate(plain: Callable[..., Engine]) -> Gate:
    return Gate(plain())


class Queue:
    """A batcher on devices of a kind, and what it reported."""

    def __init__(
        self,
        encode: Callable[..., bytes],
        runs: int = 1,
        pixels: int = SEVERAL,
        devices: int = 1,
        gpu: bool = False,
        cores: int = 4,
    ) -> None:
        self.metrics = Metrics()
        self.fatal: list[str] = []
        self.devices = [
            Device(CUDA if gpu else CPU, index, runs, 1 if gpu else cores, not gpu, 1, Budget(pixels))
            for index in range(devices)
        ]
        self._encode = encode
        self.batcher = Batcher(self.devices, 2 * gpu, 1_000_000, self.metrics, self.fatal.append)

    def submit(
        self, served: Any, level: int, size: tuple[int, int] = WIDE, timeout: float = 10, **how: Any
    ) -> asyncio.Task[Any]:
        """Asks for an image of one grey `level`, so that who gets whose answer can be told."""
        data = self._encode(Image.new("RGB", size[::-1], (level, level, level)))
        return self.send(served, data, timeout, **how)

    def send(self, served: Any, data: bytes, timeout: float = 10, **how: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.batcher.answer(data, served, False, timeout, **how))

    async def after(self, gate: Gate, *levels: int) -> list[asyncio.Task[Any]]:
        """Asks for the first level, and for the others once it is in the engine."""
        asked = [self.submit(gate, levels[0])]
        await settled()
        asked += [self.submit(gate, level) for level in levels[1:]]
        await settled()
        return asked

    async def wait_behind_one(self, gate: Gate) -> float:
        """How long one is expected to wait while one image is in the engine and one waits; leaves the gate open."""
        gate.opened.clear()
        asked = await self.after(gate, 101, 102)
        expected = self.batcher.expected_wait()
        gate.opened.set()
        await asyncio.gather(*asked)
        return expected

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0


@pytest.fixture
def queue(encode: Callable[..., bytes]) -> Any:
    made: list[Queue] = []

    def make(**kind: Any) -> Queue:
        made.append(Queue(encode, **kind))
        return made[-1]

    yield make
    for each in made:
        each.batcher.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def settled() -> None:
    """Until all that can happen without the gate has happened."""
    await asyncio.sleep(0.1)


def level_of(answer: Any) -> int:
    return round(float(answer.result.scores[0]) * 255)


@pytest.mark.parametrize("gpu", [False, True])
def test_an_idle_engine_takes_the_first_at_once_and_then_all_that_waits(gate, queue, gpu):
    async def test():
        waiting = queue(gpu=gpu)
        asked = await waiting.after(gate, 10, 20, 30, 40)
        assert waiting.value("detector_queue_depth") == 3
        assert waiting.value("detector_waiting_bytes") > 3 * 64
        gate.opened.set()
        answers = await asyncio.gather(*asked)
        assert gate.batches == [(WIDE, 1), (WIDE, 3)]
        assert [level_of(answer) for answer in answers] == [10, 20, 30, 40]
        assert waiting.value("detector_queue_depth") == waiting.value("detector_waiting_bytes") == 0
        assert waiting.value("detector_batch_size_sum", graph="full") == 4

    run(test)


@pytest.mark.parametrize("gpu", [False, True])
def test_what_waits_is_shared_among_the_engines(gate, queue, gpu):
    async def test():
        waiting = queue(runs=2, gpu=gpu)
        asked = await waiting.after(gate, 1) + await waiting.after(gate, 2, *range(10, 16))
        gate.opened.set()
        await asyncio.gather(*asked)
        sizes = [size for _, size in gate.batches]
        # one each at once, then never more than half of the six that wait
        assert sizes[:2] == [1, 1]
        assert max(sizes) <= 3
        assert sum(sizes) == 8

    run(test)


def test_two_devices_work_at_once_and_the_idle_one_takes_the_next(gate, queue, plain):
    async def test():
        waiting = queue(devices=2)
        free = Gate(plain())
        free.opened.set()
        held = waiting.submit(gate, 10)  # one device is kept busy
        await settled()
        for level in (20, 30, 40):
            assert level_of(await waiting.submit(free, level)) == level
        (busy,) = gate.devices
        assert set(free.devices) == set(waiting.devices) - {busy}
        gate.opened.set()
        await held
        assert waiting.value("detector_engine_busy_seconds_total", device="cpu:0") > 0
        assert waiting.value("detector_engine_busy_seconds_total", device="cpu:1") > 0

    run(test)


def test_a_batch_stays_within_its_pixels_and_never_mixes_canvases(gate, queue):
    async def test():
        waiting = queue(pixels=3 * 64 * 96, gpu=True)
        asked = await waiting.after(gate, 1)
        asked += [waiting.submit(gate, 10 + n, size) for n, size in enumerate([WIDE, TALL] * 4)]
        await settled()
        gate.opened.set()
        await asyncio.gather(*asked)
        assert sum(number for _, number in gate.batches) == 9
        assert max(number for _, number in gate.batches) == 3
        assert len(gate.batches) <= 6
        assert waiting.value("detector_batch_filled_ratio_bucket", le="1.0") == len(gate.batches)

    run(test)


def test_a_canvas_larger_than_the_budget_still_runs_alone(gate, queue):
    async def test():
        gate.opened.set()
        await queue(pixels=1).submit(gate, 10)
        assert gate.batches == [(WIDE, 1)]

    run(test)


def test_the_one_that_has_waited_longest_goes_first(gate, queue):
    async def test():
        waiting = queue()
        asked = []
        for number, size in enumerate((WIDE, TALL, WIDE, WIDE, WIDE)):
            asked.append(waiting.submit(gate, 10 + number, size))
            await asyncio.sleep(0.01)
        gate.opened.set()
        await asyncio.gather(*asked)
        assert gate.batches == [(WIDE, 1), (TALL, 1), (WIDE, 3)]

    run(test)


def test_bulk_goes_after_interactive_but_is_not_left_for_ever(gate, queue, monkeypatch):
    monkeypatch.setattr("service.queue.batcher.BULK_PATIENCE", 0.3)

    async def test():
        waiting = queue(pixels=1)
        asked = [waiting.submit(gate, 1), waiting.submit(gate, 50, bulk=True), waiting.submit(gate, 2)]
        await asyncio.sleep(0.4)
        asked.append(waiting.submit(gate, 3))  # later than the bulk request's patience
        await settled()
        gate.opened.set()
        await asyncio.gather(*asked)
        assert gate.levels == [1, 2, 50, 3]

    run(test)


def test_a_lone_request_has_all_cores_and_many_have_one_each(gate, queue):
    async def test():
        waiting = queue(cores=4, pixels=1)
        gate.opened.set()
        await waiting.submit(gate, 10)
        assert gate.threads == [4]
        gate.opened.clear()
        asked = [waiting.submit(gate, 20 + number) for number in range(5)]
        await settled()
        gate.opened.set()
        await asyncio.gather(*asked)
        assert gate.threads[-4] == 1  # three others wait
        assert gate.threads[-1] == 4  # the last is alone again

    run(test)


def test_the_same_image_in_flight_is_computed_once(gate, queue):
    async def test():
        waiting = queue()
        asked = await waiting.after(gate, 10, 20, 20, 10, 20)
        assert waiting.value("detector_queue_depth") == 1
        gate.opened.set()
        answers = await asyncio.gather(*asked)
        assert [level_of(answer) for answer in answers] == [10, 20, 20, 10, 20]
        assert gate.levels == [10, 20]
        assert waiting.value("detector_shared_total") == 3
        await waiting.submit(gate, 20)  # nothing is kept
        assert gate.levels == [10, 20, 20]

    run(test)


def test_one_of_two_with_the_same_image_may_leave(gate, queue):
    async def test():
        waiting = queue()
        first, leaves, stays = await waiting.after(gate, 10, 20, 20)
        leaves.cancel()
        await settled()
        assert waiting.value("detector_queue_depth") == 1
        gate.opened.set()
        await first
        assert level_of(await stays) == 20

    run(test)


def test_an_interactive_request_takes_the_same_bulk_image_forward(gate, queue):
    async def test():
        waiting = queue(pixels=1)
        asked = [waiting.submit(gate, 1), waiting.submit(gate, 50, bulk=True), waiting.submit(gate, 2)]
        await settled()
        asked.append(waiting.submit(gate, 50))
        asked.append(waiting.submit(gate, 3))
        await settled()
        gate.opened.set()
        await asyncio.gather(*asked)
        assert gate.levels == [1, 2, 50, 3]

    run(test)


@pytest.mark.parametrize("gpu", [False, True])
def test_who_has_gone_costs_nothing_and_is_counted(gate, queue, gpu):
    async def test():
        waiting = queue(gpu=gpu)
        first, gone, last = await waiting.after(gate, 10, 20, 30)
        gone.cancel()
        await settled()
        assert waiting.value("detector_queue_depth") == 1
        assert waiting.value("detector_cancelled_total", reason="disconnected", stage="queue") == 1
        gate.opened.set()
        await asyncio.gather(first, last)
        assert gate.levels == [10, 30]

    run(test)


def test_a_deadline_ends_the_waiting_in_time(gate, queue):
    async def test():
        waiting = queue()
        (first,) = await waiting.after(gate, 10)
        late = waiting.submit(gate, 20, timeout=0.2)
        began = time.monotonic()
        with pytest.raises(DeadlinePassedError):
            await late
        assert time.monotonic() - began < 1
        assert waiting.value("detector_cancelled_total", reason="deadline", stage="queue") == 1
        gate.opened.set()
        await first
        assert gate.levels == [10]

    run(test)


def test_what_could_not_be_answered_in_time_is_not_begun(gate, queue):
    async def test():
        waiting = queue(pixels=1)
        asked = waiting.submit(gate, 10)
        await asyncio.sleep(0.5)  # so long does a run of this model take, as far as anyone knows
        gate.opened.set()
        await asked
        with pytest.raises(DeadlinePassedError):
            await waiting.submit(gate, 20, timeout=0.25)
        assert gate.levels == [10]
        assert level_of(await waiting.submit(gate, 30, timeout=5)) == 30  # and now it is known to be fast
        assert level_of(await waiting.submit(gate, 20, timeout=0.25)) == 20

    run(test)


def test_a_deadline_that_passes_inside_the_engine_harms_no_neighbour(gate, queue):
    async def test():
        waiting = queue()
        late = waiting.submit(gate, 10, timeout=0.2)
        with pytest.raises(DeadlinePassedError):
            await late
        assert waiting.value("detector_cancelled_total", reason="deadline", stage="inference") == 1
        gate.opened.set()
        assert level_of(await waiting.submit(gate, 51)) == 51

    run(test)


def test_an_image_that_cannot_be_decoded_fails_alone_and_reaches_no_engine(gate, queue):
    async def test():
        gate.opened.set()
        waiting = queue()
        good, bad = waiting.submit(gate, 10), waiting.send(gate, b"hello")
        with pytest.raises(ImageError, match="not an image"):
            await bad
        assert level_of(await good) == 10
        assert gate.levels == [10]

    run(test)


def test_an_image_that_the_engine_fails_on_fails_alone(plain, queue):
    async def test():
        gate = Gate(plain(fails_on_white=True))
        waiting = queue()
        levels = [10, 20, 255, 30, 40, 50, 60]
        asked = await waiting.after(gate, *levels)
        gate.opened.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for level, answer in zip(levels, answers, strict=True):
            if level == 255:
                assert isinstance(answer, EngineFailedError)
                assert str(answer) == ""  # what ONNX Runtime said stays in the log
            else:
                assert level_of(answer) == level
        assert gate.batches[:2] == [(WIDE, 1), (WIDE, 6)]
        assert waiting.fatal == []  # a blank image still goes through

    run(test)


class Failing(Gate):
    """Fails with `error` in place of running more than `most` images."""

    def __init__(self, engine: Engine, error: BaseException, most: int = 0) -> None:
        super().__init__(engine)
        self.error, self.most = error, most
        self.opened.set()

    def run(self, canvases: list[Canvas], proposals_only: bool, threads: int) -> Any:
        if len(canvases) > self.most:
            raise self.error
        return super().run(canvases, proposals_only, threads)


def test_an_engine_that_fails_on_everything_is_reported_at_once_and_the_queue_goes_on(plain, queue, gate):
    class Dead(Failing):
        def probe(self) -> None:
            raise self.error

    async def test():
        waiting = queue()
        dead = Dead(plain(), RuntimeError("CUDA failure 700: an illegal memory access was encountered"))
        for level in (10, 20):
            with pytest.raises(EngineFailedError):
                await waiting.submit(dead, level)
        assert "every image" in waiting.fatal[0]
        assert "700" not in waiting.fatal[0]
        gate.opened.set()
        assert level_of(await waiting.submit(gate, 255)) == 255

    run(test)


NO_MEMORY = [
    RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
    RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 1048576"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_when_memory_runs_out_batches_are_halved_and_all_are_answered(plain, queue, gate, error, monkeypatch):
    async def test():
        waiting = queue(pixels=8 * 64 * 96)
        scarce = Failing(plain(), error, most=2)
        asked = [waiting.submit(gate, 1)]
        await settled()
        asked += [waiting.submit(scarce, 10 + number) for number in range(8)]
        await settled()
        gate.opened.set()
        answers = await asyncio.gather(*asked)
        assert [level_of(answer) for answer in answers] == [1, *range(10, 18)]
        (device,) = waiting.devices
        assert device.budget.pixels == 4 * 64 * 96
        assert waiting.value("detector_batch_budget_pixels", device="cpu:0") == 4 * 64 * 96
        assert waiting.value("detector_out_of_memory_total", device="cpu:0") == 1
        assert waiting.fatal == []
        monkeypatch.setattr("service.engine.devices.RECOVERY_SECONDS", 0)
        await waiting.submit(gate, 99)
        assert device.budget.pixels == 8 * 64 * 96  # given back in time

    run(test)


def test_an_image_for_which_there_is_no_memory_says_so(plain, queue):
    async def test():
        waiting = queue()
        with pytest.raises(NoMemoryLeftError):
            await waiting.submit(Failing(plain(), MemoryError()), 10)
        assert waiting.fatal == []

    run(test)


def test_even_a_worker_that_returns_nonsense_does_not_stop_the_queue(plain, queue, gate):
    async def test():
        waiting = queue()
        with pytest.raises(EngineFailedError):
            await waiting.submit(Failing(plain(), SystemExit()), 10)  # not even an Exception
        gate.opened.set()
        await waiting.submit(gate, 10)

    run(test)


def test_how_long_one_would_wait_follows_the_present_rate(plain, queue):
    class Slow(Gate):
        def run(self, canvases: list[Canvas], proposals_only: bool, threads: int) -> Any:
            time.sleep(0.05)
            return super().run(canvases, proposals_only, threads)

    async def test():
        waiting = queue(pixels=1)
        slow = Slow(plain())
        slow.opened.set()
        assert waiting.batcher.expected_wait() == 0
        asked = [waiting.submit(slow, 10 + number) for number in range(8)]
        await asked[2]
        assert 2 * 0.05 < waiting.batcher.expected_wait() < 30
        await asyncio.gather(*asked)
        assert waiting.batcher.expected_wait() == 0

    run(test)


def test_where_batches_save_little_they_grow_with_the_queue(gate, queue):
    async def test():
        waiting = queue()
        waiting.devices[0].depth = 4
        asked = await waiting.after(gate, *range(1, 11))  # nine wait: a batch of three, then two, then single ones
        gate.opened.set()
        await asyncio.gather(*asked)
        assert [number for _, number in gate.batches] == [1, 3, 2, 1, 1, 1, 1]

    run(test)


@pytest.mark.parametrize("gpu", [False, True])
def test_decoding_goes_on_when_ready_images_leave(gate, queue, gpu):
    async def test():
        waiting = queue(gpu=gpu, pixels=64 * 96)  # so that decoding stops ahead of the engine after an image or two
        asked = await waiting.after(gate, *range(1, 9))
        for task in asked[1:3]:
            task.cancel()
        await settled()
        gate.opened.set()
        answers = await asyncio.gather(asked[0], *asked[3:])
        assert [level_of(answer) for answer in answers] == [1, 4, 5, 6, 7, 8]
        assert sorted(gate.levels) == [1, 4, 5, 6, 7, 8]

    run(test)


@pytest.mark.parametrize("gpu", [False, True])
def test_the_others_go_on_when_all_that_are_ready_are_too_late(gate, queue, gpu):
    async def test():
        waiting = queue(gpu=gpu, pixels=64 * 96)
        first = waiting.submit(gate, 1)
        await asyncio.sleep(1)
        gate.opened.set()
        await first  # so long does a run take, as far as anyone knows
        gate.opened.clear()
        asked = [waiting.submit(gate, 2)]
        await settled()
        asked += [waiting.submit(gate, 10 + n, timeout=0.6) for n in range(2)]
        asked += [waiting.submit(gate, 20 + n) for n in range(4)]
        await asyncio.sleep(0.4)  # now there is too little left for the two
        gate.opened.set()
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        assert [isinstance(answer, DeadlinePassedError) for answer in answers] == [False, True, True, *[False] * 4]

    run(test)


def test_one_slow_run_does_not_refuse_hasty_requests_for_ever(gate, queue):
    async def test():
        waiting = queue()
        first = waiting.submit(gate, 1)
        await asyncio.sleep(0.5)
        gate.opened.set()
        await first
        served = 0
        for level in range(10, 30):
            try:
                await waiting.submit(gate, level, timeout=0.3)
                served += 1
            except DeadlinePassedError:
                assert not served  # once it was tried, it is known to be fast
        assert served >= 15

    run(test)


def test_time_in_which_nobody_waits_does_not_count_as_work(gate, queue):
    async def test():
        waiting = queue(pixels=1)
        first, *others = await waiting.after(gate, 1, 2, 3)
        for task in others:
            task.cancel()
        await settled()
        await asyncio.sleep(0.5)
        gate.opened.set()
        await first
        asked = await waiting.after(gate, 4, 5, 6)
        await asyncio.gather(*asked)
        assert await waiting.wait_behind_one(gate) < 0.1

    run(test)


def test_time_after_an_image_that_is_none_does_not_count_as_work(gate, queue):
    async def test():
        waiting = queue(pixels=1)
        asked = await waiting.after(gate, 1, 2)
        # the last of a busy time, and enough of them for some to wait still when the good ones are answered
        broken = [waiting.send(gate, b"no image %d" % number) for number in range(100)]
        await settled()
        gate.opened.set()
        await asyncio.gather(*asked)
        outcomes = await asyncio.gather(*broken, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {NotAnImageError}
        await asyncio.sleep(1)
        await waiting.submit(gate, 3)
        assert await waiting.wait_behind_one(gate) < 0.05

    run(test)


def test_after_slow_times_one_quick_answer_is_enough_to_let_others_wait_again(gate, queue):
    async def test():
        waiting = queue(pixels=1)
        gate.opened.set()
        waiting.batcher._spacing = 60.0
        await waiting.submit(gate, 4)
        assert await waiting.wait_behind_one(gate) < 0.2

    run(test)


def test_an_image_that_there_is_no_memory_to_decode_is_not_called_broken(gate, queue, monkeypatch):
    def scarce(*_: Any, **__: Any) -> None:
        raise MemoryError

    async def test():
        waiting = queue()
        gate.opened.set()
        for module, function in ((decode_module, "_decode"), (Image, "open")):
            with monkeypatch.context() as patch:
                patch.setattr(module, function, scarce)
                with pytest.raises(NoMemoryLeftError):
                    await waiting.submit(gate, 1)
        assert level_of(await waiting.submit(gate, 2)) == 2

    run(test)


def test_a_lone_image_without_memory_does_not_shrink_the_batches_of_others(plain, queue):
    async def test():
        waiting = queue()
        for level in range(5):
            with pytest.raises(NoMemoryLeftError):
                await waiting.submit(Failing(plain(), MemoryError()), level)
        assert waiting.devices[0].budget.pixels == SEVERAL
        assert waiting.value("detector_out_of_memory_total", device="cpu:0") == 5

    run(test)


def test_who_joins_later_is_not_told_of_time_before_it_came(gate, queue):
    async def test():
        waiting = queue()
        first = waiting.submit(gate, 10)
        await asyncio.sleep(0.3)
        second = waiting.submit(gate, 10)
        gate.opened.set()
        early, late = await first, await second
        assert early.inference > 0.29
        assert late.inference < 0.2
        assert late.decode == late.queue == 0

    run(test)
