"""The places for requests in flight: which requests get one, and what the others are told."""

import contextlib
import time

import pytest

from service.admission import Admission, OverloadedError, TimeoutTooLongError
from service.queue.memory import HELD_SHARE, MemoryBudget

SIZE = 100  # bytes of each upload


def admission(places: int = 3, wait: float = 0.0, memory: MemoryBudget | None = None) -> Admission:
    return Admission(places, longest_timeout=30, expected_wait=lambda: wait, memory=memory or MemoryBudget())


def test_a_request_that_was_only_examined_occupies_no_place():
    one = admission(places=1)
    examined = [one.examine() for _ in range(3)]
    assert one.in_flight == 0
    with one.admit(examined[0], SIZE):
        assert one.in_flight == 1
        with pytest.raises(OverloadedError), one.admit(examined[1], SIZE):
            pass


def test_a_place_is_free_again_after_the_answer_or_an_error():
    one = admission(places=1)
    examined = one.examine()
    with one.admit(examined, SIZE), pytest.raises(OverloadedError):
        one.examine()
    with pytest.raises(ZeroDivisionError), one.admit(examined, SIZE):
        1 / 0  # noqa: B018
    assert one.in_flight == 0


def test_bulk_requests_may_use_half_of_the_places_rounded_up():
    three = admission(places=3)  # so 2 for bulk
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(three.admit(three.examine(bulk=True), SIZE))
        with pytest.raises(OverloadedError):
            three.examine(bulk=True)
        with three.admit(three.examine(), SIZE):
            assert three.in_flight == 3


def in_flight(admitted):
    """The number of requests that the client has in flight."""
    return admitted.load.in_flight


def test_a_client_without_a_request_in_flight_has_a_place_of_its_own():
    eight = admission(places=8)  # and 8 / 8 = 1 more for a new client
    with contextlib.ExitStack() as held:
        for number in range(8):
            assert in_flight(held.enter_context(eight.admit(eight.examine(client="greedy"), SIZE))) == number + 1
        with pytest.raises(OverloadedError):
            eight.examine(client="greedy")
        assert in_flight(held.enter_context(eight.admit(eight.examine(client="modest"), SIZE))) == 1
        for other in ("modest", "third"):
            with pytest.raises(OverloadedError):
                eight.examine(client=other)
    with eight.admit(eight.examine(client="greedy"), SIZE) as admitted:
        assert in_flight(admitted) == 1


def test_room_is_made_only_if_all_places_are_taken():
    one = admission(places=1)
    asked = []
    with contextlib.ExitStack() as slow_reader:

        def drop_it() -> None:
            asked.append(one.in_flight)
            slow_reader.close()

        one.make_room = drop_it
        slow_reader.enter_context(one.admit(one.examine(), SIZE))
        assert asked == []
        with one.admit(one.examine(), SIZE):
            assert one.in_flight == 1
    assert asked == [1]


def test_a_request_without_a_timeout_has_the_longest_timeout():
    before = time.perf_counter()
    examined = admission().examine()
    assert (examined.timeout, examined.bulk) == (30, False)
    assert before <= examined.since <= time.perf_counter()
    assert admission().examine(30, bulk=True)[:2] == (30, True)


def test_a_longer_timeout_is_refused():
    with pytest.raises(TimeoutTooLongError) as caught:
        admission().examine(30.1)
    assert caught.value.longest == 30


def test_a_request_that_would_wait_longer_than_its_timeout_is_refused():
    admission(wait=5).examine(5)
    with pytest.raises(OverloadedError):
        admission(wait=5.1).examine(5)


@pytest.mark.parametrize(("wait", "seconds"), [(0, 1), (0.2, 1), (1.1, 2), (7, 7), (1000, 60)])
def test_retry_after_is_the_expected_wait_in_whole_seconds_from_1_to_60(wait, seconds):
    with pytest.raises(OverloadedError) as caught:
        admission(places=0, wait=wait).examine()
    assert caught.value.retry_after == seconds


def test_a_request_without_memory_for_its_upload_is_refused():
    memory = MemoryBudget(HELD_SHARE * 2 * SIZE)  # so uploads may hold twice the size
    five = admission(places=5, memory=memory)
    examined = five.examine()
    with five.admit(examined, SIZE), five.admit(examined, SIZE):
        with pytest.raises(OverloadedError), five.admit(examined, 1):
            pass
        assert (five.in_flight, memory.held) == (2, 2 * SIZE)
    assert (five.in_flight, memory.held) == (0, 0)
