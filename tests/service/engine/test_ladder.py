"""The batch sizes with sessions of their own, and the choice among them, with invented times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.ladder import MOST_IMAGES, images_to_take, rung_for, rung_pays, rungs, split

TIMES = {1: 2.0, 4: 5.0, 8: 9.0}  # milliseconds: 2, 1.25 and 1.125 for each image of a full batch


@pytest.mark.parametrize(
    ("full", "expected"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (9, (1, 3, 9)), (48, (1, 7, 48)), (1000, (1, 8, MOST_IMAGES))],
)
def test_a_ladder_has_one_the_full_batch_and_one_rung_in_between(full, expected):
    assert rungs(full) == expected


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        (0, 0),
        (1, 1),
        (2, 1),  # alone 2 ms for an image; two in the session for four 5 / 2 = 2.5 ms
        (3, 3),  # 5 / 3 = 1.7 ms in the session for four
        (4, 4),
        (6, 4),  # 5 / 4 = 1.25 ms; six in the session for eight 9 / 6 = 1.5 ms
        (7, 4),  # 9 / 7 = 1.29 ms
        (8, 8),  # 9 / 8 = 1.125 ms
        (100, 8),
    ],
)
def test_a_run_takes_as_many_images_as_make_the_time_for_each_least(ready, expected):
    assert images_to_take(TIMES, ready, most=8) == expected


def test_a_run_takes_no_more_memory_than_is_allowed_even_if_its_rows_hold_no_image():
    assert images_to_take(TIMES, ready=7, most=7) == 4
    assert images_to_take(TIMES, ready=3, most=3) == 1  # three would need the session for four
    assert images_to_take({4: 5.0}, ready=3, most=1) == 3  # there is no smaller session


def test_equal_times_take_the_most_images():
    assert images_to_take({1: 1.0, 2: 2.0, 4: 4.0}, 4, 4) == 4
    assert images_to_take({1: 0.0, 8: 0.0}, 5, 8) == 5  # before the warm-up


times = st.dictionaries(st.integers(1, 64), st.floats(0.001, 10), min_size=1, max_size=4)


@given(times, st.integers(1, 200), st.integers(1, 200))
def test_no_other_number_of_images_takes_less_time_for_each(times, ready, most):
    taken = images_to_take(times, ready, most)
    assert 1 <= taken <= ready
    allowed = {rung for rung in times if rung <= most} or {min(times)}

    def each(images: int) -> float:
        return min(times[rung] for rung in allowed if rung >= images) / images

    assert each(taken) == min(each(images) for images in range(1, min(ready, max(allowed)) + 1))


def test_a_rung_in_between_stays_only_if_it_is_a_fifth_faster_than_the_others():
    # four images take 4 x 2 = 8 ms one by one, and 9 ms in the session for eight; a fifth less is 6.4 ms
    assert rung_pays({1: 2.0, 4: 6.3, 8: 9.0}, 4)
    assert not rung_pays({1: 2.0, 4: 6.5, 8: 9.0}, 4)


def test_a_batch_uses_the_smallest_session_that_holds_it():
    assert [rung_for(images, (1, 4, 8)) for images in (1, 2, 4, 5, 8)] == [1, 4, 4, 8, 8]
    with pytest.raises(ValueError, match="9 images in a batch, but the sessions take 8 at most"):
        rung_for(9, (1, 4, 8))


@given(st.integers(1, 300), st.sets(st.integers(2, 64), max_size=3))
def test_the_parts_of_a_batch_are_never_larger_than_the_batch(images, ladder):
    parts = list(split(images, ladder | {1}))
    assert sum(parts) == images
    assert set(parts) <= ladder | {1}
    assert parts == sorted(parts, reverse=True)
