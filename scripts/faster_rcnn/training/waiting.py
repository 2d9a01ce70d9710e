"""Steps that the processes of a run take together although they last differently long, such as reading the data.

A collective operation would have to be done within `processes.TIMEOUT`. Here a step may last for hours: each process
that works on it shows signs of life in the store that all of them reach, and the others wait for as long as these come.
A failure of one process ends the step in all of them, with the same message.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

from faster_rcnn.files import in_words
from faster_rcnn.training.processes import TIMEOUT, common_store, gathered, place_of, processes, rank

T = TypeVar("T")

BEAT = 5.0  # seconds between two signs of life
LONGEST_PAUSE = 0.5  # seconds between two looks at the store
_FAILED = "failed"


class OtherProcessError(ValueError):
    """Another process of this run cannot go on. The message names it and gives its reason."""


def each(action: Callable[[], T]) -> T:
    """Every process acts. Returns this one's result once all have finished.

    Raises the error of this process, or OtherProcessError if another one has failed.
    """
    return _step(range(processes()), action)  # type: ignore[return-value]  # every process is an actor


def alone(action: Callable[[], T]) -> T | None:
    """The first process acts while the others wait. Returns its result in the first process, and None elsewhere.

    Raises as `each` does.
    """
    return _step((0,), action)


def from_first(action: Callable[[], T]) -> T:
    """What `action` returns in the first process, in every process. Raises as `each` does."""
    result = [alone(action)]
    if dist.is_initialized():
        dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]  # the broadcast has replaced None


def exchanged(value: T) -> list[T]:
    """The values of all processes, in every process, once the last one has come here. Raises as `each` does."""
    each(lambda: None)
    return gathered(value)


def _step(actors: Iterable[int], action: Callable[[], T]) -> T | None:
    if not dist.is_initialized():
        return action()
    store = common_store()
    step = store.add(f"steps/{rank()}", 1)
    result = None
    if rank() in actors:
        try:
            with _signs_of_life(store):
                result = action()
        except Exception as error:
            if not isinstance(error, OtherProcessError):
                store.set(_FAILED, json.dumps([rank(), place_of(rank()), _in_words(error)]))
            raise
        store.add(f"finished/{rank()}", step - store.add(f"finished/{rank()}", 0))
    for actor in actors:
        _wait_for(store, actor, step)
    return result


@contextmanager
def _signs_of_life(store: dist.Store) -> Iterator[None]:
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(BEAT):
            store.add(f"alive/{rank()}", 1)

    thread = threading.Thread(target=show, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wait_for(store: dist.Store, actor: int, step: int) -> None:
    """Returns once process `actor` has finished `step`.

    Raises OtherProcessError if any process has failed, or if this one shows no sign of life.
    """
    last, since, pause = -1, time.monotonic(), 0.005
    while store.add(f"finished/{actor}", 0) < step:
        if store.check([_FAILED]):
            number, place, why = json.loads(store.get(_FAILED))
            raise OtherProcessError(f"process {number} ({place}) cannot go on: {why}")
        alive = store.add(f"alive/{actor}", 0)
        if alive != last:
            last, since = alive, time.monotonic()
        elif time.monotonic() - since > TIMEOUT.total_seconds():
            minutes = round(TIMEOUT.total_seconds() / 60)
            raise OtherProcessError(
                f"process {actor} ({place_of(actor)}) has shown no sign of life for {minutes} minutes; look at its "
                "machine, and start all processes again"
            )
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 1.5 * pause)


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return in_words(error)
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
