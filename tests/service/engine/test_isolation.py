"""Isolation of failures, with functions in place of an engine. Each image is identified by its grey level."""

import numpy as np
import pytest

from service.engine.isolation import (
    EngineDeadError,
    EngineFailedError,
    NoMemoryLeftError,
    Ran,
    is_out_of_memory,
    isolate,
)
from service.images.fit import Canvas

BAD = 99


def batch(*levels: int) -> list[Canvas]:
    return [Canvas(np.full((1, 1, 3), level, np.uint8), (1, 1), 1, 1) for level in levels]


class Recorder:
    """Records each batch and returns the level of each image, unless `fails` raises an error for them."""

    def __init__(self, fails=lambda levels: None) -> None:
        self.fails = fails
        self.batches: list[list[int]] = []

    def __call__(self, canvases: list[Canvas]) -> list[int]:
        levels = [int(canvas.pixels[0, 0, 0]) for canvas in canvases]
        self.batches.append(levels)
        self.fails(levels)
        return levels


def run_batch(run, probe, canvases: list[Canvas]) -> Ran:
    """Runs a batch as the queue does."""
    try:
        return Ran(run(canvases), False, None)
    except Exception as error:
        return isolate(error, run, probe, canvases)


def healthy() -> None:
    pass


def dead() -> None:
    raise RuntimeError("CUDA failure 700")


def fails_on_bad(levels: list[int]) -> None:
    if BAD in levels:
        raise RuntimeError("an image that the graph cannot handle")


def holds_two(levels: list[int]) -> None:
    if len(levels) > 2:
        raise MemoryError


def test_a_batch_that_succeeds_runs_once():
    run = Recorder()
    assert run_batch(run, dead, batch(1, 2, 3)) == ([1, 2, 3], False, None)
    assert run.batches == [[1, 2, 3]]


def test_a_failing_batch_is_halved_until_the_bad_image_is_alone():
    run = Recorder(fails_on_bad)
    results, out_of_memory, fatal = run_batch(run, healthy, batch(1, 2, BAD, 4))
    assert run.batches == [[1, 2, BAD, 4], [1, 2], [BAD, 4], [BAD], [4]]
    assert [results[0], results[1], results[3]] == [1, 2, 4]
    assert type(results[2]) is EngineFailedError
    assert (out_of_memory, fatal) == (False, None)


def test_a_batch_too_large_for_the_memory_is_halved_without_a_probe():
    run = Recorder(holds_two)
    assert run_batch(run, dead, batch(1, 2, 3, 4, 5)) == ([1, 2, 3, 4, 5], True, None)
    assert run.batches == [[1, 2, 3, 4, 5], [1, 2], [3, 4, 5], [3], [4, 5]]


def test_a_single_image_too_large_for_the_memory_fails_with_that_reason():
    def no_memory(_: list[int]) -> None:
        raise MemoryError

    (result,), out_of_memory, fatal = run_batch(Recorder(no_memory), healthy, batch(1))
    assert type(result) is NoMemoryLeftError
    assert (out_of_memory, fatal) == (True, None)


def test_a_dead_engine_is_not_used_again():
    run = Recorder(fails_on_bad)
    results, _, fatal = run_batch(run, dead, batch(1, BAD, 3, 4))
    assert run.batches == [[1, BAD, 3, 4]]
    assert [type(result) for result in results] == [EngineDeadError] * 4
    assert fatal
    assert "every image" in fatal
    assert "700" not in fatal  # the library's message appears only in the log


def test_results_from_before_an_engine_dies_are_kept():
    alive = [True]

    def probe() -> None:
        if not alive[0]:
            dead()

    def dies_after_the_first_half(levels: list[int]) -> None:
        if levels == [3, BAD]:
            alive[0] = False
        fails_on_bad(levels)

    results, _, fatal = run_batch(Recorder(dies_after_the_first_half), probe, batch(1, 2, 3, BAD))
    assert results[:2] == [1, 2]
    assert [type(result) for result in results[2:]] == [EngineDeadError] * 2
    assert fatal


def test_the_second_half_is_not_run_if_the_engine_dies_in_the_first():
    alive = [True]

    def probe() -> None:
        if not alive[0]:
            dead()

    def dies_in_the_first_half(levels: list[int]) -> None:
        if levels == [1, BAD]:
            alive[0] = False
        fails_on_bad(levels)

    run = Recorder(dies_in_the_first_half)
    results, _, fatal = run_batch(run, probe, batch(1, BAD, 3, 4))
    assert run.batches == [[1, BAD, 3, 4], [1, BAD]]
    assert [type(result) for result in results] == [EngineDeadError] * 4
    assert fatal


def test_an_engine_is_not_dead_if_its_probe_runs_out_of_memory():
    def probe() -> None:
        raise RuntimeError("std::bad_alloc")

    (result,), _, fatal = run_batch(Recorder(fails_on_bad), probe, batch(BAD))
    assert type(result) is EngineFailedError
    assert fatal is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), True),
        (RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA failure 2"), True),
        (RuntimeError("CUDA failure 209: no kernel image is available"), False),
        (RuntimeError("CUDA failure 700: an illegal memory access was encountered"), False),
    ],
)
def test_out_of_memory_is_recognised_by_type_or_message(error, expected):
    assert is_out_of_memory(error) is expected
