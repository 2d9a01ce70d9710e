import contextlib
import time

import pytest

from service.admission import Admission, OverloadedError, TimeoutTooLongError


def admission(places: int = 3, wait: float = 0.0) -> Admission:
    return Admission(places, longest_timeout=30, expected_wait=lambda: wait)


def test_a_place_is_free_again_after_the_answer_or_an_error():
    one = admission(places=1)
    with one.admit():
        assert one.in_flight == 1
        with pytest.raises(OverloadedError), one.admit():
            pass
    with pytest.raises(ZeroDivisionError), one.admit():
        1 / 0  # noqa: B018
    assert one.in_flight == 0


def test_bulk_requests_may_use_half_of_the_places_rounded_up():
    three = admission(places=3)  # so 2 for bulk
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(three.admit(bulk=True))
        with pytest.raises(OverloadedError), three.admit(bulk=True):
            pass
        with three.admit():
            assert three.in_flight == 3


def test_a_request_without_a_timeout_has_the_longest_timeout():
    before = time.perf_counter()
    with admission().admit() as admitted:
        assert (admitted.timeout, admitted.bulk) == (30, False)
        assert before <= admitted.since <= time.perf_counter()
    with admission().admit(30, bulk=True) as admitted:
        assert (admitted.timeout, admitted.bulk) == (30, True)


def test_a_longer_timeout_is_refused():
    with pytest.raises(TimeoutTooLongError) as caught, admission().admit(30.1):
        pass
    assert caught.value.longest == 30


def test_a_request_that_would_wait_longer_than_its_timeout_is_refused():
    with admission(wait=5).admit(5):
        pass
    with pytest.raises(OverloadedError), admission(wait=5.1).admit(5):
        pass


@pytest.mark.parametrize(("wait", "seconds"), [(0, 1), (0.2, 1), (1.1, 2), (7, 7), (1000, 60)])
def test_retry_after_is_the_expected_wait_in_whole_seconds_from_1_to_60(wait, seconds):
    with pytest.raises(OverloadedError) as caught, admission(places=0, wait=wait).admit():
        pass
    assert caught.value.retry_after == seconds
