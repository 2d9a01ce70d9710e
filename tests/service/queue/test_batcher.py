"""The batcher with real threads, and real engines on small graphs. Gates and a clock control the order of events."""

import asyncio
from typing import Any

import pytest
from PIL import Image, ImageFile

from service.engine.devices import RECOVERY_SECONDS
from service.engine.isolation import EngineFailedError, NoMemoryLeftError
from service.images.decode import ImageError, NotAnImageError
from service.queue import batcher as batcher_module
from service.queue.batcher import BULK_PATIENCE, DeadlinePassedError
from service.queue.pace import ESTIMATE_DECAY
from service.queue.tasks import ClientLoad
from tests.service.queue.harness import SEVERAL, TALL, WIDE, Failing, level_of


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.contract("5.1")
def test_an_idle_engine_runs_the_first_image_at_once_and_then_all_waiting_images(gate, queue, run, gpu):
    async def test():
        waiting = queue(gpu=gpu)
        sent = await waiting.after(gate, 10, 20, 30, 40)
        assert waiting.value("detector_queue_depth") == 3
        assert waiting.value("detector_waiting_bytes") > 3 * 64
        gate.open()
        answers = await asyncio.gather(*sent)
        assert gate.batches == [(WIDE, 1), (WIDE, 3)]
        assert [level_of(answer) for answer in answers] == [10, 20, 30, 40]
        assert waiting.value("detector_queue_depth") == waiting.value("detector_waiting_bytes") == 0
        assert waiting.value("detector_batch_size_sum", graph="full") == 4

    run(test)


@pytest.mark.parametrize("gpu", [False, True])
def test_waiting_images_are_shared_among_the_engines(gate, queue, run, gpu):
    async def test():
        waiting = queue(runs=2, gpu=gpu)
        sent = await waiting.after(gate, 1) + await waiting.after(gate, 2, *range(10, 16))
        gate.open()
        await asyncio.gather(*sent)
        sizes = [size for _, size in gate.batches]
        # one each at once, then at most half of the six waiting images
        assert sizes[:2] == [1, 1]
        assert max(sizes) <= 3
        assert sum(sizes) == 8

    run(test)


def test_two_devices_work_at_the_same_time_and_the_idle_one_runs_the_next_image(
    gate, make_gate, queue, run, standstill
):
    async def test():
        waiting = queue(devices=2)
        free = make_gate()
        free.open()
        held = waiting.submit(gate, 10)  # keeps one device busy
        await standstill.settle()
        for level in (20, 30, 40):
            assert level_of(await waiting.submit(free, level)) == level
        (busy,) = gate.devices
        assert set(free.devices) == set(waiting.devices) - {busy}
        gate.open()
        await held
        assert waiting.value("detector_batch_size_count", graph="full") == 4

    run(test)


def test_the_seconds_of_runs_are_counted_for_each_device(make_gate, queue, run, standstill, clock):
    async def test():
        waiting = queue(devices=2)
        gates = [make_gate(), make_gate()]
        sent = [waiting.submit(gates[0], 10)]
        await standstill.settle()
        clock.advance(2)
        sent.append(waiting.submit(gates[1], 20))
        await standstill.settle()
        clock.advance(5)
        for gate in gates:
            gate.open()
        await asyncio.gather(*sent)
        names = [gate.devices[0].name for gate in gates]
        assert sorted(names) == ["cpu:0", "cpu:1"]
        # the first device ran for 2 + 5 s, the second for 5 s
        busy = [waiting.value("detector_engine_busy_seconds_total", device=name) for name in names]
        assert busy == [7, 5]

    run(test)


@pytest.mark.contract("2.2", "5.2")
def test_a_batch_stays_within_its_budget_and_never_mixes_canvases(gate, queue, run, standstill):
    async def test():
        waiting = queue(pixels=3 * 64 * 96, gpu=True)
        sent = await waiting.after(gate, 1)
        sent += [waiting.submit(gate, 10 + n, size) for n, size in enumerate([WIDE, TALL] * 4)]
        await standstill.settle()
        gate.open()
        await asyncio.gather(*sent)
        assert sum(number for _, number in gate.batches) == 9
        assert max(number for _, number in gate.batches) == 3
        assert len(gate.batches) <= 6
        assert waiting.value("detector_batch_filled_ratio_bucket", le="1.0") == len(gate.batches)

    run(test)


def test_a_canvas_larger_than_the_budget_still_runs_alone(gate, queue, run):
    async def test():
        gate.open()
        await queue(pixels=1).submit(gate, 10)
        assert gate.batches == [(WIDE, 1)]

    run(test)


@pytest.mark.contract("5.3")
def test_the_canvas_whose_first_image_has_waited_longest_is_run_first(gate, queue, run, standstill, clock):
    async def test():
        waiting = queue()
        sent = []
        for number, size in enumerate((WIDE, TALL, WIDE, WIDE, WIDE)):
            sent.append(waiting.submit(gate, 10 + number, size))
            await standstill.settle()
            clock.advance(1)
        gate.open()
        await asyncio.gather(*sent)
        assert gate.batches == [(WIDE, 1), (TALL, 1), (WIDE, 3)]

    run(test)


def test_bulk_requests_yield_to_interactive_ones_but_are_not_starved(gate, queue, run, standstill, clock):
    async def test():
        waiting = queue(pixels=1)
        sent = [waiting.submit(gate, 1), waiting.submit(gate, 50, bulk=True), waiting.submit(gate, 2)]
        await standstill.settle()
        clock.advance(BULK_PATIENCE + 1)
        sent.append(waiting.submit(gate, 3))
        await standstill.settle()
        gate.open()
        await asyncio.gather(*sent)
        assert gate.levels == [1, 2, 50, 3]

    run(test)


def of_one_client(waiting, gate, level, load):
    """Submits an image of a client with this load, as admission counts it."""

    async def answered():
        load.in_flight += 1
        try:
            return await waiting.submit(gate, level, load=load)
        finally:
            load.in_flight -= 1

    return asyncio.ensure_future(answered())


@pytest.mark.contract("3.10")
def test_the_images_of_one_client_keep_their_order_when_the_service_becomes_faster(gate, queue, run, standstill, clock):
    load = ClientLoad()

    async def test():
        waiting = queue(pixels=1)
        sent = [of_one_client(waiting, gate, level, load) for level in range(10, 13)]
        for _ in range(2):  # from now on, the time between answers is known to be 1 s
            await standstill.settle()
            clock.advance(1)
            gate.hold.let_one_pass()
        await standstill.settle()
        sent += [of_one_client(waiting, gate, level, load) for level in range(13, 16)]  # ranked 1, 2 and 3 s later
        await standstill.settle()
        gate.hold.let_one_pass()  # 12 is answered 0 s after 11
        await standstill.settle()
        sent.append(of_one_client(waiting, gate, 16, load))
        await standstill.settle()
        gate.open()
        await asyncio.gather(*sent)
        assert gate.levels == [10, 11, 12, 13, 14, 15, 16]

    run(test)


@pytest.mark.contract("3.10")
def test_the_image_of_a_modest_client_does_not_wait_behind_all_those_of_a_greedy_one(
    gate, queue, run, standstill, clock
):
    load = ClientLoad()

    async def test():
        waiting = queue(pixels=1)
        greedy = [of_one_client(waiting, gate, level, load) for level in range(10, 14)]
        for _ in range(2):  # from now on, the time between answers is known to be 1 s
            await standstill.settle()
            clock.advance(1)
            gate.hold.let_one_pass()
        await standstill.settle()
        greedy += [of_one_client(waiting, gate, level, load) for level in range(14, 17)]
        await standstill.settle()
        modest = waiting.submit(gate, 50)
        await standstill.settle()
        gate.open()
        await asyncio.gather(*greedy, modest)
        # 12 is in the engine; 13 came before the rate was known; 14 counts as if it had arrived 2 s later
        assert gate.levels == [10, 11, 12, 13, 50, 14, 15, 16]

    run(test)


def test_a_single_request_gets_all_cores_and_many_requests_get_one_each(gate, queue, run, standstill):
    async def test():
        waiting = queue(cores=4, pixels=1)
        gate.open()
        await waiting.submit(gate, 10)
        assert gate.threads == [4]
        gate.close()
        sent = [waiting.submit(gate, 20 + number) for number in range(5)]
        await standstill.settle()
        gate.open()
        await asyncio.gather(*sent)
        assert gate.threads[-4] == 1  # three others wait
        assert gate.threads[-1] == 4  # the last one is alone again

    run(test)


def test_identical_uploads_in_flight_are_computed_once(gate, queue, run):
    async def test():
        waiting = queue()
        sent = await waiting.after(gate, 10, 20, 20, 10, 20)
        assert waiting.value("detector_queue_depth") == 1
        gate.open()
        answers = await asyncio.gather(*sent)
        assert [level_of(answer) for answer in answers] == [10, 20, 20, 10, 20]
        assert gate.levels == [10, 20]
        assert waiting.value("detector_shared_total") == 3
        await waiting.submit(gate, 20)  # results are not kept
        assert gate.levels == [10, 20, 20]

    run(test)


def test_one_of_two_requests_for_the_same_image_can_be_cancelled(gate, queue, run, standstill):
    async def test():
        waiting = queue()
        first, leaves, stays = await waiting.after(gate, 10, 20, 20)
        leaves.cancel()
        await standstill.settle()
        assert waiting.value("detector_queue_depth") == 1
        gate.open()
        await first
        assert level_of(await stays) == 20

    run(test)


def test_an_interactive_request_moves_a_bulk_request_for_the_same_image_forward(gate, queue, run, standstill):
    async def test():
        waiting = queue(pixels=1)
        sent = [waiting.submit(gate, 1), waiting.submit(gate, 50, bulk=True), waiting.submit(gate, 2)]
        await standstill.settle()
        sent.append(waiting.submit(gate, 50))
        sent.append(waiting.submit(gate, 3))
        await standstill.settle()
        gate.open()
        await asyncio.gather(*sent)
        assert gate.levels == [1, 2, 50, 3]

    run(test)


@pytest.mark.parametrize("gpu", [False, True])
def test_a_client_that_disconnects_costs_no_inference_and_is_counted(gate, queue, run, standstill, gpu):
    async def test():
        waiting = queue(gpu=gpu)
        first, gone, last = await waiting.after(gate, 10, 20, 30)
        gone.cancel()
        await standstill.settle()
        assert waiting.value("detector_queue_depth") == 1
        assert waiting.value("detector_cancelled_total", reason="disconnected", stage="queue") == 1
        gate.open()
        await asyncio.gather(first, last)
        assert gate.levels == [10, 30]

    run(test)


def test_a_deadline_ends_the_wait_while_the_engine_is_busy(gate, queue, run, clock):
    async def test():
        waiting = queue()
        (first,) = await waiting.after(gate, 10)
        late = waiting.submit(gate, 20, timeout=2)
        await asyncio.sleep(0)
        clock.advance(2.1)
        with pytest.raises(DeadlinePassedError):
            await late
        assert not first.done()
        assert waiting.value("detector_cancelled_total", reason="deadline", stage="queue") == 1
        gate.open()
        await first
        assert gate.levels == [10]

    run(test)


@pytest.mark.contract("5.5")
def test_an_image_that_would_miss_its_deadline_is_not_run(gate, queue, run, clock):
    async def test():
        waiting = queue(pixels=1)
        (first,) = await waiting.after(gate, 10)
        clock.advance(500)  # sets the queue's estimate of the time of a run
        gate.open()
        await first
        with pytest.raises(DeadlinePassedError):
            await waiting.submit(gate, 20, timeout=250)
        assert gate.levels == [10]
        assert level_of(await waiting.submit(gate, 30, timeout=5000)) == 30  # the estimate is low again
        assert level_of(await waiting.submit(gate, 20, timeout=250)) == 20

    run(test)


def test_a_deadline_that_passes_inside_the_engine_does_not_affect_others(gate, queue, run, clock):
    async def test():
        waiting = queue()
        (late,) = await waiting.after(gate, 10)
        shared = waiting.submit(gate, 10, timeout=2)
        await asyncio.sleep(0)
        clock.advance(2.1)
        with pytest.raises(DeadlinePassedError):
            await shared
        assert waiting.value("detector_cancelled_total", reason="deadline", stage="inference") == 1
        gate.open()
        assert level_of(await late) == 10
        assert level_of(await waiting.submit(gate, 51)) == 51

    run(test)


def test_a_run_whose_only_request_missed_its_deadline_does_not_affect_the_next(gate, queue, run, standstill, clock):
    async def test():
        waiting = queue()
        late = waiting.submit(gate, 10, timeout=2)
        await standstill.settle()
        clock.advance(2.1)
        with pytest.raises(DeadlinePassedError):
            await late
        assert waiting.value("detector_cancelled_total", reason="deadline", stage="inference") == 1
        gate.open()
        assert level_of(await waiting.submit(gate, 51)) == 51

    run(test)


@pytest.mark.contract("5.4")
def test_an_image_that_cannot_be_decoded_fails_alone_and_reaches_no_engine(gate, queue, run):
    async def test():
        gate.open()
        waiting = queue()
        good, bad = waiting.submit(gate, 10), waiting.send(gate, b"hello")
        with pytest.raises(ImageError, match="not an image"):
            await bad
        assert level_of(await good) == 10
        assert gate.levels == [10]

    run(test)


@pytest.mark.contract("5.4")
def test_an_image_on_which_the_engine_fails_does_not_affect_others(make_gate, queue, run):
    async def test():
        gate = make_gate(fails_on_white=True)
        waiting = queue()
        levels = [10, 20, 255, 30, 40, 50, 60]
        sent = await waiting.after(gate, *levels)
        gate.open()
        answers = await asyncio.gather(*sent, return_exceptions=True)
        for level, answer in zip(levels, answers, strict=True):
            if level == 255:
                assert isinstance(answer, EngineFailedError)
                assert str(answer) == ""  # ONNX Runtime's message appears only in the log
            else:
                assert level_of(answer) == level
        assert gate.batches[:2] == [(WIDE, 1), (WIDE, 6)]
        assert waiting.fatal == []  # a blank image still succeeds

    run(test)


def test_an_engine_that_fails_on_every_image_is_reported_and_the_queue_continues(plain, queue, gate, run):
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
        gate.open()
        assert level_of(await waiting.submit(gate, 255)) == 255

    run(test)


NO_MEMORY = [
    RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
    RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 1048576"),
    RuntimeError("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED"),  # cuDNN 9 could not prepare a convolution
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_batches_are_halved_when_memory_runs_out_and_all_are_answered(
    plain, queue, gate, run, standstill, clock, error
):
    async def test():
        waiting = queue(pixels=8 * 64 * 96)
        scarce = Failing(plain(), error, most=2)
        sent = [waiting.submit(gate, 1)]
        await standstill.settle()
        sent += [waiting.submit(scarce, 10 + number) for number in range(8)]
        await standstill.settle()
        gate.open()
        answers = await asyncio.gather(*sent)
        assert [level_of(answer) for answer in answers] == [1, *range(10, 18)]
        (device,) = waiting.devices
        assert device.budget.pixels == 4 * 64 * 96
        assert waiting.value("detector_batch_budget_pixels", device="cpu:0") == 4 * 64 * 96
        assert waiting.value("detector_out_of_memory_total", device="cpu:0") == 1
        assert waiting.fatal == []
        clock.advance(RECOVERY_SECONDS + 1)
        await waiting.submit(gate, 99)
        assert device.budget.pixels == 8 * 64 * 96

    run(test)


def test_an_image_too_large_for_the_memory_fails_with_that_reason(plain, queue, run):
    async def test():
        waiting = queue()
        with pytest.raises(NoMemoryLeftError):
            await waiting.submit(Failing(plain(), MemoryError()), 10)
        assert waiting.fatal == []

    run(test)


def test_no_exception_from_an_engine_stops_the_queue(plain, queue, gate, run):
    async def test():
        waiting = queue()
        with pytest.raises(EngineFailedError):
            await waiting.submit(Failing(plain(), SystemExit()), 10)  # not a subclass of Exception
        gate.open()
        await waiting.submit(gate, 10)

    run(test)


def test_the_expected_wait_is_the_time_between_answers_for_each_waiting_image(gate, queue, run, standstill, clock):
    async def test():
        waiting = queue(pixels=1)
        assert waiting.batcher.expected_wait() == 0
        sent = [waiting.submit(gate, 10 + number) for number in range(8)]
        for _ in range(3):
            await standstill.settle()
            clock.advance(50)
            gate.hold.let_one_pass()
        await standstill.settle()
        # three images are answered, 50 s apart; one is in the engine and four wait
        assert waiting.value("detector_queue_depth") == 4
        assert waiting.batcher.expected_wait() == pytest.approx(4 * 50)
        gate.open()
        await asyncio.gather(*sent)
        assert waiting.batcher.expected_wait() == 0

    run(test)


def test_on_a_device_where_batches_save_little_they_grow_only_with_a_long_queue(gate, queue, run):
    async def test():
        waiting = queue()
        waiting.devices[0].depth = 4
        sent = await waiting.after(gate, *range(1, 11))
        gate.open()
        await asyncio.gather(*sent)
        # nine images wait: the batches have ceil(9 / 4) = 3, then ceil(6 / 4) = 2, then four times 1
        assert [number for _, number in gate.batches] == [1, 3, 2, 1, 1, 1, 1]

    run(test)


@pytest.mark.parametrize("gpu", [False, True])
def test_decoding_continues_when_decoded_images_are_dropped(gate, queue, run, standstill, gpu):
    async def test():
        waiting = queue(gpu=gpu, pixels=64 * 96)  # small enough that only one or two images are decoded in advance
        sent = await waiting.after(gate, *range(1, 9))
        for task in sent[1:3]:
            task.cancel()
        await standstill.settle()
        gate.open()
        answers = await asyncio.gather(sent[0], *sent[3:])
        assert [level_of(answer) for answer in answers] == [1, 4, 5, 6, 7, 8]
        assert sorted(gate.levels) == [1, 4, 5, 6, 7, 8]

    run(test)


@pytest.mark.parametrize("gpu", [False, True])
def test_the_queue_continues_when_all_decoded_images_would_miss_their_deadlines(
    gate, queue, run, standstill, clock, gpu
):
    async def test():
        waiting = queue(gpu=gpu, pixels=64 * 96)
        (first,) = await waiting.after(gate, 1)
        clock.advance(1000)
        gate.open()
        await first  # the queue now estimates 1000 s for a run
        gate.close()
        sent = await waiting.after(gate, 2)
        sent += [waiting.submit(gate, 10 + n, timeout=600) for n in range(2)]
        await standstill.settle()  # on a GPU, both images are decoded now, and there is no room for more
        sent += [waiting.submit(gate, 20 + n) for n in range(4)]
        await standstill.settle()
        clock.advance(400)  # both deadlines are 200 s away, and the queue estimates 400 s for a run
        gate.open()
        answers = await asyncio.gather(*sent, return_exceptions=True)
        assert [isinstance(answer, DeadlinePassedError) for answer in answers] == [False, True, True, *[False] * 4]
        assert sorted(gate.levels) == [1, 2, 20, 21, 22, 23]

    run(test)


def test_one_slow_run_does_not_make_short_timeouts_fail_for_ever(gate, queue, run, clock):
    async def test():
        waiting = queue()
        (first,) = await waiting.after(gate, 1)
        clock.advance(500)
        gate.open()
        await first
        refused = []
        for level in range(10, 30):
            try:
                await waiting.submit(gate, level, timeout=300)
            except DeadlinePassedError:
                refused.append(level)
        # the estimates 500 s, 400 s and 320 s exceed the timeout of 300 s; 256 s does not, and that run takes no time
        assert ESTIMATE_DECAY == 0.8
        assert refused == [10, 11, 12]

    run(test)


def test_idle_time_does_not_count_as_time_between_answers(gate, queue, run, standstill, clock):
    async def test():
        waiting = queue(pixels=1)
        first, *others = await waiting.after(gate, 1, 2, 3)
        for task in others:
            task.cancel()
        await standstill.settle()
        clock.advance(500)
        gate.open()
        await first
        sent = await waiting.after(gate, 4, 5, 6)
        await asyncio.gather(*sent)
        assert await waiting.expected_wait_behind_one(gate) == 0

    run(test)


def test_time_after_undecodable_images_does_not_count_as_time_between_answers(
    gate, queue, run, standstill, clock, monkeypatch
):
    decoding = standstill.hold()
    decode = batcher_module.decode

    def held_if_broken(data: bytes, *how: Any) -> Any:
        if data.startswith(b"broken"):
            decoding.stop_here()
        return decode(data, *how)

    async def test():
        monkeypatch.setattr(batcher_module, "decode", held_if_broken)
        waiting = queue(pixels=1)
        sent = await waiting.after(gate, 1, 2)
        broken = [waiting.send(gate, b"broken %d" % number) for number in range(3)]
        await standstill.settle()
        gate.open()
        await asyncio.gather(*sent)
        await standstill.settle()
        assert waiting.value("detector_queue_depth") == 2  # so the time of the last answer is not forgotten
        decoding.open()
        outcomes = await asyncio.gather(*broken, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {NotAnImageError}
        clock.advance(1000)
        await waiting.submit(gate, 3)
        assert await waiting.expected_wait_behind_one(gate) == 0

    run(test)


def test_after_a_slow_period_one_quick_answer_reduces_the_expected_wait(gate, queue, run, standstill, clock):
    async def test():
        waiting = queue(pixels=1)
        sent = await waiting.after(gate, 1, 2, 3)
        for _ in sent:
            clock.advance(60)
            gate.hold.let_one_pass()
            await standstill.settle()
        await asyncio.gather(*sent)
        gate.close()
        sent = await waiting.after(gate, 4, 5)
        assert waiting.batcher.expected_wait() == pytest.approx(60)
        gate.open()
        await asyncio.gather(*sent)
        assert await waiting.expected_wait_behind_one(gate) == 0

    run(test)


def test_running_out_of_memory_while_decoding_is_not_reported_as_a_broken_image(gate, queue, run, monkeypatch):
    def scarce(*_: Any, **__: Any) -> None:
        raise MemoryError

    async def test():
        waiting = queue()
        gate.open()
        for place, function in ((ImageFile.ImageFile, "load"), (Image, "open")):
            with monkeypatch.context() as patch:
                patch.setattr(place, function, scarce)
                with pytest.raises(NoMemoryLeftError):
                    await waiting.submit(gate, 1)
        assert level_of(await waiting.submit(gate, 2)) == 2

    run(test)


def test_a_single_image_that_runs_out_of_memory_does_not_shrink_the_budget(plain, queue, run):
    async def test():
        waiting = queue()
        for level in range(5):
            with pytest.raises(NoMemoryLeftError):
                await waiting.submit(Failing(plain(), MemoryError()), level)
        assert waiting.devices[0].budget.pixels == SEVERAL
        assert waiting.value("detector_out_of_memory_total", device="cpu:0") == 5

    run(test)


def test_the_time_before_a_request_joined_a_task_is_not_counted_for_it(gate, queue, run, standstill, clock):
    async def test():
        waiting = queue()
        (first,) = await waiting.after(gate, 10)
        clock.advance(30)
        second = waiting.submit(gate, 10)
        await standstill.settle()
        clock.advance(7)
        gate.open()
        early, late = await first, await second
        assert early.inference == 30 + 7
        assert late.inference == 7
        assert late.decode == late.queue == 0

    run(test)
