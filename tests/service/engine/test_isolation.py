"""Isolation of failures, with functions in place of an engine. Each image is identified by its grey level."""

import numpy as np
import pytest

from service.engine.isolation import (
    EngineDeadError,
    EngineFailedError,
    NoMemoryLeftError,
    Ran,
    isolate,
)
from service.engine.out_of_memory import is_failed_plan, is_out_of_memory
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
        (RuntimeError("BFCArena: Available memory of 512 is smaller than requested bytes of 4096"), True),
        (RuntimeError("Available memory of 512 is smaller than requested bytes of 4096"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0"), True),
        (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), True),
        (RuntimeError("cudaErrorMemoryAllocation"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA failure 2"), True),
        (RuntimeError("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED ; GPU=0"), False),  # it does not say why
        (RuntimeError("CUDA failure 209: no kernel image is available"), False),
        (RuntimeError("CUDA failure 700: an illegal memory access was encountered"), False),
    ],
)
def test_out_of_memory_is_recognised_by_type_or_message(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED ; expr=s_.cudnn_fe_graph->build_plans(handle);", True),
        ("CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED", True),
        ("CUDNN_FE failure 5: GRAPH_NOT_SUPPORTED", False),
        ("CUDNN_FE failure 1: ATTRIBUTE_NOT_SET", False),
        ("CUDA failure 11", False),
    ],
)
def test_a_plan_that_cudnn_could_not_make_is_told_from_one_that_it_does_not_support(message, expected):
    assert is_failed_plan(RuntimeError(message)) is expected


def no_plan(levels: list[int]) -> None:
    if len(levels) > 2 or BAD in levels:
        raise RuntimeError("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED")


@pytest.mark.contract("5.4")
def test_a_plan_that_cudnn_cannot_make_counts_as_a_lack_of_memory_while_the_engine_works():
    assert run_batch(Recorder(no_plan), healthy, batch(1, 2, 3)) == ([1, 2, 3], True, None)
    (result,), out_of_memory, fatal = run_batch(Recorder(no_plan), healthy, batch(BAD))
    assert type(result) is NoMemoryLeftError  # 503 with Retry-After, not 500
    assert (out_of_memory, fatal) == (True, None)


def test_an_engine_that_cannot_make_any_plan_is_dead():
    results, out_of_memory, fatal = run_batch(Recorder(no_plan), dead, batch(BAD))
    assert type(results[0]) is EngineDeadError
    assert fatal
    assert not out_of_memory
