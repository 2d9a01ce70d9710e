"""A device with two threads for each run: one prepares a batch and reads outputs while the batch of the other one runs.

The engines run on the CPU; only the queue believes that the device is a GPU.
"""

import asyncio
import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.engine.devices import Budget, Device
from service.engine.engine import Engine, WrongOutputError
from service.engine.isolation import EngineFailedError
from service.engine.model import load_model
from service.engine.options import EngineOptions
from service.engine.providers import CPU
from service.images.decode import decode
from service.queue.batcher import Batcher
from service.queue.memory import MemoryBudget
from service.queue.tasks import ClientLoad
from service.telemetry.metrics import Metrics
from tests.service import graphs
from tests.service.queue.harness import HANG_SECONDS, TALL, WIDE, Failing, level_of

THREE = 3 * 64 * 96  # a budget of three images


@pytest.mark.contract("5.1")
def test_a_full_batch_is_prepared_while_another_one_runs(gate, queue, run):
    async def test():
        sent = await queue(gpu=True, lanes=2, pixels=THREE).after(gate, 1, 2, 3, 4, 5)
        assert gate.prepared == [(WIDE, 1), (WIDE, 3)]
        assert gate.batches == [(WIDE, 1)]
        gate.open()
        assert [level_of(answer) for answer in await asyncio.gather(*sent)] == [1, 2, 3, 4, 5]
        assert gate.batches == [(WIDE, 1), (WIDE, 3), (WIDE, 1)]

    run(test)


@pytest.mark.contract("5.1")
def test_images_that_arrive_during_a_run_join_the_next_batch_until_it_is_full(gate, queue, run, standstill):
    async def test():
        waiting = queue(gpu=True, lanes=2, pixels=THREE)
        sent = await waiting.after(gate, 1, 2, 3)
        assert gate.prepared == [(WIDE, 1)]
        sent.append(waiting.submit(gate, 4))
        await standstill.settle()
        assert gate.prepared == [(WIDE, 1), (WIDE, 3)]
        gate.open()
        await asyncio.gather(*sent)

    run(test)


def test_a_batch_that_is_not_full_is_run_as_soon_as_the_device_is_free(gate, queue, run, standstill):
    async def test():
        waiting = queue(gpu=True, lanes=2, pixels=THREE)
        gate.unpacking = standstill.hold()
        sent = await waiting.after(gate, 1, 2, 3)
        gate.hold.let_one_pass()
        await standstill.settle()
        # the outputs of the first batch are not read yet, but the second one runs
        assert gate.batches == [(WIDE, 1), (WIDE, 2)]
        assert not sent[0].done()
        gate.unpacking.open()
        gate.open()
        await asyncio.gather(*sent)

    run(test)


def test_the_next_batch_forms_when_the_run_begins_and_not_before_so_that_it_cannot_overtake(
    gate, queue, run, standstill
):
    async def test():
        waiting = queue(gpu=True, lanes=2, pixels=THREE)
        gate.preparing = standstill.hold()
        sent = await waiting.after(gate, 1, 2, 3, 4)
        assert gate.preparing.stopped() == 1  # three images wait, but only the first one is being prepared
        gate.preparing.let_one_pass()
        await standstill.settle()
        assert gate.batches == [(WIDE, 1)]
        assert gate.preparing.stopped() == 1
        gate.preparing.open()
        gate.open()
        await asyncio.gather(*sent)
        assert gate.batches == [(WIDE, 1), (WIDE, 3)]

    run(test)


def test_no_batch_is_prepared_that_would_go_before_one_with_an_earlier_image(gate, queue, run, standstill):
    async def test():
        waiting = queue(gpu=True, lanes=2, pixels=THREE)
        sent = [waiting.submit(gate, 1)]
        await standstill.settle()
        sent.append(waiting.submit(gate, 2, TALL))
        await standstill.settle()
        sent += [waiting.submit(gate, level) for level in (3, 4, 5)]
        await standstill.settle()
        assert gate.prepared == [(WIDE, 1)]  # TALL comes first, and another image may still join it
        gate.open()
        await asyncio.gather(*sent)
        assert gate.batches == [(WIDE, 1), (TALL, 1), (WIDE, 3)]

    run(test)


def test_no_batch_is_prepared_that_another_device_could_run_sooner(gate, queue, run, standstill):
    async def test():
        waiting = queue(gpu=True, lanes=2, devices=2, pixels=THREE)
        sent = await waiting.after(gate, 1) + await waiting.after(gate, 2)
        sent += [waiting.submit(gate, level) for level in (3, 4, 5)]
        await standstill.settle()
        assert gate.prepared == [(WIDE, 1), (WIDE, 1)]  # the share of each device in three images is two
        sent += [waiting.submit(gate, level) for level in (6, 7, 8)]
        await standstill.settle()
        assert gate.prepared[2:] == [(WIDE, 3)]  # of six images it is three; of the three that are left, two
        gate.open()
        await asyncio.gather(*sent)

    run(test)


def test_an_idle_device_runs_an_image_at_once_while_threads_of_a_busy_one_wait(make_gate, gate, queue, run, standstill):
    async def test():
        waiting = queue(gpu=True, lanes=4, runs=2, devices=3, pixels=THREE)
        held = [waiting.submit(gate, 1 + number) for number in range(4)]
        await standstill.settle()
        free = make_gate()
        free.open()
        for level in range(20, 60):
            assert level_of(await waiting.submit(free, level)) == level
            await standstill.settle()
        gate.open()
        await asyncio.gather(*held)

    run(test)


def test_the_wait_for_the_turn_is_queue_time_and_only_runs_keep_the_device_busy(gate, queue, run, standstill, clock):
    async def test():
        waiting = queue(gpu=True, lanes=2, pixels=THREE)
        gate.unpacking = standstill.hold()
        sent = await waiting.after(gate, 1, 2, 3, 4)
        clock.advance(5)
        gate.hold.let_one_pass()
        await standstill.settle()
        clock.advance(3)
        gate.open()
        await standstill.settle()
        clock.advance(4)
        gate.unpacking.open()
        first, second, *_ = await asyncio.gather(*sent)
        # The first run takes 5 s, and its outputs are read 3 + 4 s later. The second one then takes 3 s, and 4 s more.
        assert (first.queue, first.inference) == (0, 5 + 3 + 4)
        assert (second.queue, second.inference) == (5, 3 + 4)
        assert waiting.value("detector_engine_busy_seconds_total", device="cuda:0") == 5 + 3

    run(test)


def test_one_clients_images_are_run_in_their_order(gate, queue, run, standstill):
    async def test():
        waiting = queue(gpu=True, lanes=2, pixels=THREE)
        load = ClientLoad(in_flight=11)
        sent = []
        for level in range(11):
            sent.append(waiting.submit(gate, level, load=load))
            await standstill.settle()  # decoded before the next one, because two full batches for each thread may wait
        assert gate.prepared == [(WIDE, 1), (WIDE, 3)]
        gate.open()
        answers = await asyncio.gather(*sent)
        assert [level_of(answer) for answer in answers] == gate.levels == list(range(11))

    run(test)


@pytest.mark.contract("5.4")
def test_while_a_batch_is_halved_the_prepared_one_waits_or_runs_between_the_halves(plain, gate, queue, run, standstill):
    async def test():
        waiting = queue(gpu=True, lanes=2, pixels=THREE)
        scarce = Failing(plain(), MemoryError(), most=1)
        sent = [waiting.submit(gate, 1)]
        await standstill.settle()
        sent += [waiting.submit(scarce, level) for level in range(10, 16)]
        await standstill.settle()
        gate.open()
        answers = await asyncio.gather(*sent)
        assert [level_of(answer) for answer in answers] == [1, *range(10, 16)]
        (device,) = waiting.devices
        assert device.budget.pixels == THREE // 2  # one image
        assert waiting.fatal == []
        assert device.turn.free() == 1

    run(test)


@pytest.mark.parametrize("error", [WrongOutputError("not finite"), MemoryError()], ids=repr)
@pytest.mark.contract("5.4")
def test_a_batch_whose_outputs_cannot_be_read_is_not_run_again_before_the_run_in_progress_ends(
    plain, gate, queue, run, standstill, error
):
    class Wrong(Failing):
        def results(self, executed: Any) -> Any:
            super().results(executed)
            if len(executed) > 1:
                raise self.error
            return executed

    async def test():
        waiting = queue(gpu=True, lanes=2, pixels=THREE)
        wrong = Wrong(plain(), error, most=10)
        wrong.unpacking = standstill.hold()
        sent = [waiting.submit(gate, 1)]
        await standstill.settle()
        for level in (10, 11):
            sent.append(waiting.submit(wrong, level))
            await standstill.settle()
        gate.hold.let_one_pass()
        await standstill.settle()
        assert wrong.batches == [(WIDE, 2)]  # it ran; its outputs are not read yet
        sent.append(waiting.submit(gate, 2))
        await standstill.settle()
        wrong.unpacking.open()
        await standstill.settle()
        assert gate.batches == [(WIDE, 1), (WIDE, 1)]  # the second one is in the engine
        assert wrong.batches == [(WIDE, 2)]
        gate.open()
        answers = await asyncio.gather(*sent)
        assert [level_of(answer) for answer in answers] == [1, 10, 11, 2]
        assert wrong.batches == [(WIDE, 2), (WIDE, 1), (WIDE, 1)]

    run(test)


def test_an_engine_that_dies_while_a_batch_is_prepared_fails_both_batches_and_is_reported(plain, gate, queue, run):
    class Dead(Failing):
        def probe(self) -> None:
            raise self.error

    async def test():
        waiting = queue(gpu=True, lanes=2, pixels=THREE)
        dead = Dead(plain(), RuntimeError("CUDA failure 700: an illegal memory access was encountered"))
        sent = [waiting.submit(dead, level) for level in range(10, 20)]
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        assert all(isinstance(outcome, EngineFailedError) for outcome in outcomes)
        assert waiting.fatal
        gate.open()
        assert level_of(await waiting.submit(gate, 255)) == 255

    run(test)


class Faulty:
    """A served model whose real engine fails at random in each of the three parts of a run."""

    def __init__(self, engine: Engine, runs: int) -> None:
        self.engine, self.runs = engine, runs
        self.geometry, self.prefers_same_shape = engine.geometry, False
        self.images_to_take, self.probe = engine.images_to_take, engine.probe
        self.random = random.Random(3)
        self.running = self.most = 0
        self.lock = threading.Lock()

    def engine_on(self, device: Device) -> Any:
        return self

    def fail(self, *errors: BaseException) -> None:
        with self.lock:
            which = self.random.random() * 8
        if which < len(errors):
            raise errors[int(which)]

    def run(self, *batch: Any) -> Any:
        return self.results(self.execute(self.prepare(*batch)))

    def prepare(self, *batch: Any) -> Any:
        self.fail(MemoryError())
        return self.engine.prepare(*batch)

    def execute(self, prepared: Any) -> Any:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            self.fail(RuntimeError("CUDA failure 2: out of memory"), RuntimeError("an image"), SystemExit())
            return self.engine.execute(prepared)
        finally:
            with self.lock:
                self.running -= 1

    def results(self, executed: Any) -> Any:
        self.fail(WrongOutputError("output scores has values that are not finite"))
        return self.engine.results(executed)


@pytest.mark.parametrize("runs", [1, 2])
def test_no_fault_of_an_engine_leaves_a_request_unanswered_or_runs_two_batches_in_one_turn(plain, encode, runs):
    metrics, fatal = Metrics(), list[str]()
    device = Device(CPU, 0, runs, 1, False, 1, Budget(THREE), lanes=2 * runs)
    batcher = Batcher([device], 2, 1, 1_000_000, MemoryBudget(), metrics, fatal.append)
    model: Any = Faulty(plain(), runs)
    uploads = [encode(Image.new("RGB", (96, 64), (level,) * 3)) for level in range(150)]

    async def load() -> list[Any]:
        sent = [batcher.answer(data, model, False, 30) for data in uploads]
        return await asyncio.wait_for(asyncio.gather(*sent, return_exceptions=True), HANG_SECONDS)

    try:
        outcomes = asyncio.run(load())
    finally:
        batcher.close()
    failed = [outcome for outcome in outcomes if isinstance(outcome, EngineFailedError)]
    assert 0 < len(failed) < 150
    for level, outcome in enumerate(outcomes):
        assert isinstance(outcome, EngineFailedError) or level_of(outcome) == level
    assert fatal == []
    assert model.most <= runs
    for _ in range(runs):
        assert device.turn.acquire(blocking=False)


LADDER = (1, 2, 5)  # the batch sizes for which there are sessions if the budget allows five images


@pytest.fixture
def laddered(tmp_path):
    """A served model with fixed shapes, on the CPU, whose engine counts the runs of each batch size.

    It fails on white images, and `scarce` makes batches of more than one row run out of memory.
    """

    class Laddered:
        def __init__(self) -> None:
            model = load_model(graphs.publish(tmp_path, fails_on_white=True))
            self.engine = Engine(model, options=EngineOptions(fixed_shapes=True), batch_pixels=5 * 64 * 96)
            self.engine.warm_up(5 * 64 * 96)
            self.geometry = self.engine.geometry
            self.rows: list[int] = []
            self.scarce = False
            self._execute = self.engine.execute
            self.engine.execute = self.execute  # type: ignore[method-assign]

        def engine_on(self, device: Device) -> Engine:
            return self.engine

        def execute(self, prepared: Any) -> Any:
            self.rows.append(prepared.chosen.rows)
            if self.scarce and prepared.chosen.rows > 1:
                raise MemoryError
            return self._execute(prepared)

    return Laddered()


@pytest.mark.parametrize("scarce", [False, True])
@pytest.mark.contract("1.2", "5.4")
def test_batches_of_fixed_sizes_get_the_right_answers_through_two_lanes(laddered, encode, scarce):
    metrics, fatal = Metrics(), list[str]()
    device = Device(CPU, 0, 1, 1, False, 1, Budget(5 * 64 * 96), lanes=2)
    batcher = Batcher([device], 2, 1, 1_000_000, MemoryBudget(), metrics, fatal.append)
    laddered.scarce = scarce
    levels = [*range(0, 240, 3), 255, *range(1, 240, 3)]
    uploads = [encode(Image.new("RGB", (96, 64) if level % 2 else (64, 96), (level,) * 3)) for level in levels]

    async def load() -> list[Any]:
        sent = [batcher.answer(data, laddered, False, 30) for data in uploads]
        return await asyncio.wait_for(asyncio.gather(*sent, return_exceptions=True), HANG_SECONDS)

    try:
        outcomes = asyncio.run(load())
    finally:
        batcher.close()
    for level, outcome in zip(levels, outcomes, strict=True):
        assert isinstance(outcome, EngineFailedError) if level == 255 else level_of(outcome) == level
    assert set(laddered.rows) <= set(LADDER)
    assert (device.budget.pixels < 5 * 64 * 96) == scarce
    assert fatal == []


@pytest.mark.skipif("REAL_DATA_DIR" not in os.environ, reason="REAL_DATA_DIR is not set")
@pytest.mark.contract("1.2")
def test_photographs_get_the_same_answers_through_two_lanes_as_alone(embedded_engine):
    uploads = [path.read_bytes() for path in sorted(Path(os.environ["REAL_DATA_DIR"], "coco_cc").rglob("*.jpg"))[:24]]
    device = Device(CPU, 0, 1, 1, False, 1, Budget(4 * 320 * 576), lanes=2)
    batcher = Batcher([device], 2, 1, 10**8, MemoryBudget(), Metrics(), lambda reason: None)

    class Served:
        geometry = embedded_engine.geometry

        def engine_on(self, device: Device) -> Engine:
            return embedded_engine

    model: Any = Served()

    async def load() -> list[Any]:
        return await asyncio.gather(*(batcher.answer(data, model, False, 100) for data in uploads))

    try:
        answers = asyncio.run(load())
    finally:
        batcher.close()
    assert len(answers) == 24
    for data, answer in zip(uploads, answers, strict=True):
        (alone,) = embedded_engine.run([decode(data, embedded_engine.geometry)])
        np.testing.assert_array_equal(answer.result.labels, alone.labels)
        np.testing.assert_allclose(answer.result.boxes, alone.boxes, rtol=0, atol=0.01)
        np.testing.assert_allclose(answer.result.scores, alone.scores, rtol=0, atol=1e-4)
