"""The queue of tasks without threads and engines. Stubs replace objects that a task only passes on."""

import asyncio
from typing import Any

import numpy as np
import pytest

from service.engine.engine import Result
from service.images.fit import Canvas, Resize
from service.queue.tasks import BatchKey, Task, TaskQueue, Waiter

WIDE, TALL = (4, 6), (6, 4)
MODEL: Any = object()


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def tasks() -> TaskQueue:
    return TaskQueue()


@pytest.fixture
def task(loop):
    def make(data: bytes, rank: float = 0.0, model: Any = MODEL, proposals_only: bool = False) -> Task:
        return Task(data, model, proposals_only, loop, rank)

    return make


@pytest.fixture
def waiter(loop):
    def make(arrived: float = 0.0, deadline: float = 10.0) -> Waiter:
        return Waiter(loop.create_future(), arrived, deadline)

    return make


def canvas(size: tuple[int, int] = WIDE) -> Canvas:
    return Canvas(np.zeros((*size, 3), np.uint8), size, 60, 40)


def key(size: tuple[int, int] = WIDE) -> BatchKey:
    return BatchKey(MODEL, size, False)


def decode_all(tasks: TaskQueue, *sizes: tuple[int, int]) -> list[Task]:
    decoded = []
    for size in sizes:
        decoded.append(tasks.take_undecoded())
        assert tasks.add_ready(decoded[-1], canvas(size))
    return decoded


# --- joining and leaving ---------------------------------------------------------------------------------------------


def test_tasks_are_decoded_in_order_of_rank_and_equal_ranks_in_order_of_arrival(tasks, task, waiter):
    for data, rank in ((b"a", 2), (b"b", 1), (b"c", 2), (b"d", 1)):
        tasks.join(task(data, rank), waiter())
    assert len(tasks) == 4
    assert [tasks.take_undecoded().data for _ in range(4)] == [b"b", b"d", b"a", b"c"]
    assert not tasks.has_undecoded


def test_requests_with_equal_bytes_share_a_task_in_any_stage(tasks, task, waiter):
    first = task(b"same")
    assert tasks.join(first, waiter()) is first
    assert tasks.join(task(b"same"), waiter()) is first
    tasks.take_undecoded()
    assert tasks.join(task(b"same"), waiter()) is first  # while the task is being decoded
    assert len(first.waiters) == 3
    assert len(tasks) == 0


def test_requests_with_different_bytes_or_outputs_do_not_share_a_task(tasks, task, waiter):
    first = task(b"1" + 32 * b"x")
    others = [task(b"2" + 32 * b"x"), task(first.data, model=object()), task(first.data, proposals_only=True)]
    assert first.upload_key == others[0].upload_key  # the keys are equal, so the bytes are compared
    tasks.join(first, waiter())
    for other in others:
        assert tasks.join(other, waiter()) is other


def test_a_closed_task_can_no_longer_be_joined(tasks, task, waiter):
    first, waits = task(b"same"), waiter()
    tasks.join(first, waits)
    assert tasks.close(first) == [waits]
    second = task(b"same")
    assert tasks.join(second, waiter()) is second
    tasks.close(first)  # closes no other task
    assert tasks.join(task(b"same"), waiter()) is second


def test_a_request_with_a_smaller_rank_moves_the_shared_task_forward(tasks, task, waiter):
    tasks.join(task(b"a", 1), waiter())
    tasks.join(task(b"b", 5), waiter())
    tasks.join(task(b"b", 0), waiter())
    tasks.join(task(b"a", 7), waiter())  # a larger rank changes nothing
    assert [task.data for task in decode_all(tasks, WIDE, WIDE)] == [b"b", b"a"]
    tasks.join(task(b"a", -1), waiter())  # decoded tasks move too
    first = tasks.take_ready(key())
    assert first
    assert first.data == b"a"


def test_a_task_is_removed_with_its_last_request(tasks, task, waiter):
    shared, one, two = task(b"same"), waiter(), waiter()
    tasks.join(shared, one)
    tasks.join(task(b"same"), two)
    assert not tasks.leave(shared, one)
    assert len(tasks) == 1
    assert not tasks.leave(shared, two)
    assert len(tasks) == 0
    again = task(b"same")
    assert tasks.join(again, waiter()) is again


def test_removing_a_decoded_task_makes_room_for_another(tasks, task, waiter):
    waits = waiter()
    tasks.join(task(b"a"), waits)
    (ready,) = decode_all(tasks, WIDE)
    assert tasks.ready_pixels == 4 * 6
    assert tasks.leave(ready, waits)
    assert tasks.ready_pixels == 0
    assert list(tasks.heads()) == []


def test_a_task_whose_last_request_left_during_decoding_is_dropped_afterwards(tasks, task, waiter):
    waits = waiter()
    tasks.join(task(b"a"), waits)
    taken = tasks.take_undecoded()
    assert not tasks.leave(taken, waits)
    assert not tasks.add_ready(taken, canvas())  # decoded, but no request waits for it any more
    assert len(tasks) == 0
    again = task(b"a")
    assert tasks.join(again, waiter()) is again


# --- decoded tasks ---------------------------------------------------------------------------------------------------


def test_the_ready_tasks_are_known_by_key_with_their_number_and_the_first_rank(tasks, task, waiter):
    for data, rank in ((b"b", 2), (b"a", 1), (b"c", 3)):
        tasks.join(task(data, rank), waiter())
    decode_all(tasks, WIDE, TALL, WIDE)  # a, b, c
    assert set(tasks.heads()) == {(key(WIDE), 2, 1), (key(TALL), 1, 2)}
    assert tasks.take_ready(key(WIDE)).data == b"a"
    assert set(tasks.heads()) == {(key(WIDE), 1, 3), (key(TALL), 1, 2)}
    assert tasks.take_ready(key(TALL)).data == b"b"
    assert tasks.take_ready(key(TALL)) is None
    assert tasks.ready_pixels == 4 * 6
    assert len(tasks) == 1


def test_waiting_bytes_include_uploads_and_decoded_images(tasks, task, waiter):
    tasks.join(task(b"12345"), waiter())
    tasks.join(task(b"123"), waiter())
    assert tasks.bytes() == 5 + 3
    decode_all(tasks, WIDE)
    assert tasks.bytes() == 5 + 3 + 4 * 6 * 3
    tasks.take_undecoded()
    assert tasks.bytes() == 5 + 4 * 6 * 3


def test_the_deadline_of_a_task_is_that_of_its_last_request(task, waiter):
    shared = task(b"a")
    shared.waiters += [waiter(deadline=3), waiter(deadline=8), waiter(deadline=5)]
    assert shared.last_deadline == 8


# --- results ---------------------------------------------------------------------------------------------------------

RESULT: Any = Result(*[np.empty(0)] * 5)


@pytest.mark.parametrize(
    ("arrived", "decode", "queue", "inference"),
    [
        (0, 20 - 10, (10 - 0) + (50 - 20), 70 - 50),
        (10, 10, 50 - 20, 20),
        (15, 20 - 15, 30, 20),
        (30, 0, 50 - 30, 20),
        (60, 0, 0, 70 - 60),
    ],
)
def test_only_the_time_after_a_request_arrived_is_counted_for_it(task, arrived, decode, queue, inference):
    done = task(b"a")
    done.canvas = canvas()
    done.decode_began, done.decode_ended, done.run_began, done.run_ended = 10, 20, 50, 70
    timed = done.timed(RESULT, arrived)
    assert (timed.decode, timed.queue, timed.inference) == (decode, queue, inference)
    assert timed.decode + timed.queue + timed.inference == 70 - arrived
    assert (timed.width, timed.height) == (60, 40)


def test_only_the_first_outcome_of_a_request_is_kept(waiter):
    waits = waiter()
    first = ValueError()
    waits.settle(first)
    waits.settle(ValueError())
    assert waits.outcome is first
    assert waits.future.done()


@pytest.mark.contract("2.5")
def test_an_image_that_an_engine_will_resize_counts_with_all_its_pixels(tasks, task, waiter):
    # 10 x 8 pixels as decoded, on a canvas of 4 x 6
    large = Canvas(np.zeros((10, 8, 3), np.uint8), WIDE, 8, 10, pending=Resize(4, 3, (0, 0, 8, 10), True))
    users = [waiter() for _ in range(3)]
    for data, user in zip((b"a", b"b", b"c"), users, strict=True):
        tasks.join(task(data), user)
    decoded = [tasks.take_undecoded() for _ in range(3)]
    for each, image in zip(decoded, (large, canvas(), large), strict=True):
        assert tasks.add_ready(each, image)
    assert tasks.ready_pixels == 80 + 24 + 80
    assert tasks.bytes() == 3 + 3 * (80 + 24 + 80)
    assert tasks.take_ready(key()) is decoded[0]
    assert tasks.ready_pixels == 24 + 80
    tasks.leave(decoded[2], users[2])
    assert tasks.ready_pixels == 24
    assert tasks.take_ready(key()) is decoded[1]
    assert tasks.ready_pixels == 0
