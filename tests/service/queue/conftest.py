from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from service.engine.engine import Engine
from tests.service.queue import harness
from tests.service.queue.harness import Clock, Gate, Queue, Standstill


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(clock: Clock) -> Callable[..., None]:
    """Runs a coroutine function on an event loop whose timers follow `clock`."""
    return partial(harness.run, clock)


@pytest.fixture
def standstill(monkeypatch: pytest.MonkeyPatch) -> Standstill:
    return Standstill(monkeypatch)


@pytest.fixture
def make_gate(plain: Callable[..., Engine], standstill: Standstill) -> Callable[..., Gate]:
    def make(**kind: object) -> Gate:
        return Gate(plain(**kind), standstill.hold())

    return make


@pytest.fixture
def gate(make_gate: Callable[..., Gate]) -> Gate:
    return make_gate()


@pytest.fixture
def queue(encode: Callable[..., bytes], clock: Clock, standstill: Standstill) -> Iterator[Callable[..., Queue]]:
    made: list[Queue] = []

    def make(**kind: Any) -> Queue:
        made.append(Queue(encode, clock, standstill, **kind))
        return made[-1]

    yield make
    for each in made:
        each.batcher.close()
