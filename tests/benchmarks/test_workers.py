"""Functions in processes of their own."""

import os
import time
from collections.abc import Callable
from functools import partial

import pytest

from benchmarks.workers import Failed, Worker, call_aside, peak_memory

MB = 1_000_000


def double(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is below zero\nand this is more than a table holds")
    return 2 * number


def building(function: Callable) -> Callable:
    return function


def refusing() -> Callable:
    raise KeyError("no such part")


def fill(size: int) -> int:
    values = bytearray(os.urandom(1000)) * (size // 1000)
    assert values
    return peak_memory()


def test_a_worker_answers_until_it_is_closed_and_survives_an_error() -> None:
    worker = Worker(partial(building, double))
    assert worker.ask(4, seconds=60) == 8
    with pytest.raises(Failed, match=r"^-1 is below zero$"):
        worker.ask(-1, seconds=60)
    assert worker.ask(5, seconds=60) == 10
    worker.close()


def test_a_function_that_cannot_be_built_reports_why_at_each_call() -> None:
    worker = Worker(refusing)
    for _ in range(2):
        with pytest.raises(Failed, match="KeyError: 'no such part'"):
            worker.ask(seconds=60)
    worker.close()


def test_a_call_that_takes_too_long_stops_the_worker_permanently() -> None:
    worker = Worker(partial(building, time.sleep))
    worker.ask(0, seconds=60)
    for _ in range(2):
        with pytest.raises(Failed, match="stopped after 0 s"):
            worker.ask(60, seconds=0.2)
    worker.close()


def test_a_process_that_dies_is_distinguished_from_a_call_that_fails() -> None:
    with pytest.raises(Failed, match="its process ended with 7"):
        call_aside(os._exit, 7, seconds=60)


def test_peak_memory_is_that_of_the_process_alone() -> None:
    held = bytearray(os.urandom(1000)) * 300_000  # 300 MB in this process must not be counted there
    assert peak_memory() > 300 * MB
    small = call_aside(fill, 1 * MB, seconds=60)
    large = call_aside(fill, 101 * MB, seconds=60)
    assert small < 300 * MB
    assert large - small == pytest.approx(100 * MB, rel=0.1)
    assert held
