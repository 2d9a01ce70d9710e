"""Tasks, and the queue in which they wait, first for a decoding thread and then for an engine.

These classes are not thread-safe. The batcher's lock guards the queue, and the fields `rank`, `stage` and `waiters` of
every task. The other fields of a task are set by the thread that decodes or runs it, and read only after that.
"""

from __future__ import annotations

import asyncio
import math
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from service.engine.devices import Device
from service.engine.engine import Engine, Result
from service.images.fit import Canvas, Geometry
from service.queue.memory import Claim


class RunnableModel(Protocol):
    """A served version: how its images are prepared, and its engine on each device."""

    geometry: Geometry

    def engine_on(self, device: Device) -> Engine: ...


class UploadKey(NamedTuple):
    """A cheap lookup key for identical uploads in flight. After a match, the bytes are compared too."""

    tail: bytes
    length: int
    model: RunnableModel
    proposals_only: bool


class BatchKey(NamedTuple):
    """Tasks can share a batch if their keys are equal."""

    model: RunnableModel
    canvas: tuple[int, int]
    proposals_only: bool


class Head(NamedTuple):
    """The ready tasks with one batch key: their number, and the rank of the first one."""

    key: BatchKey
    ready: int
    rank: float


class TimedResult(NamedTuple):
    """An image's result, its SHA-256, the upright image's size, the warnings, and the seconds that each stage took."""

    result: Result
    digest: str
    width: int
    height: int
    warnings: tuple[str, ...]
    decode: float
    queue: float
    inference: float


@dataclass(eq=False)
class Waiter:
    """One request that waits for a task.

    The future only signals that `outcome` is set. An exception set on the future would refer to the frames that raise
    it, these frames refer to the request, and the request to the future. This cycle would keep every refused image in
    memory until the garbage collector runs.
    """

    future: asyncio.Future[None]
    arrived: float
    deadline: float
    outcome: TimedResult | Exception = field(init=False)

    def settle(self, outcome: TimedResult | Exception) -> None:
        if not self.future.done():
            self.outcome = outcome
            self.future.set_result(None)


@dataclass(eq=False)
class ClientLoad:
    """What one client has in flight.

    in_flight  its requests that were admitted and are not yet answered
    last_rank  the rank of its latest image; its next image is not ranked before it
    """

    in_flight: int = 0
    last_rank: float = -math.inf


@dataclass(eq=False)
class Task:
    """One image, and the requests that wait for it.

    loop    the event loop of these requests
    rank    determines the order in the queue; the smallest comes first
    stage   queue, decode or inference
    claim   the memory for decoding, if the image is heavy
    priced  whether the cost of decoding it is known
    """

    data: bytes
    model: RunnableModel
    proposals_only: bool
    loop: asyncio.AbstractEventLoop
    rank: float
    digest: str | None = None
    waiters: list[Waiter] = field(default_factory=list)
    stage: str = "queue"
    claim: Claim | None = None
    priced: bool = False
    canvas: Canvas | None = None
    decode_began: float = 0.0
    decode_ended: float = 0.0
    run_began: float = 0.0
    run_ended: float = 0.0

    @property
    def upload_key(self) -> UploadKey:
        # The tail is used because files from the same camera or program often begin with the same bytes.
        return UploadKey(self.data[-32:], len(self.data), self.model, self.proposals_only)

    @property
    def batch_key(self) -> BatchKey:
        assert self.canvas is not None
        return BatchKey(self.model, self.canvas.size, self.proposals_only)

    @property
    def last_deadline(self) -> float:
        return max(waiter.deadline for waiter in self.waiters)

    def bytes(self) -> int:
        return len(self.data) + (self.canvas.pixels.nbytes if self.canvas else 0)

    def timed(self, result: Result, arrived: float) -> TimedResult:
        """The result for a request that arrived at `arrived`. Time spent on the task before that is not counted."""
        assert self.canvas is not None
        return TimedResult(
            result,
            self.digest or "",
            self.canvas.width,
            self.canvas.height,
            self.canvas.warnings,
            decode=max(0.0, self.decode_ended - max(arrived, self.decode_began)),
            queue=max(0.0, self.decode_began - arrived) + max(0.0, self.run_began - max(arrived, self.decode_ended)),
            inference=self.run_ended - max(arrived, self.run_began),
        )


def _rank(task: Task) -> float:
    return task.rank


class TaskQueue:
    """The waiting tasks in order of rank, and an index of all tasks that a request with the same bytes may join.

    ready_pixels  `Canvas.memory_pixels` of the decoded tasks that wait for an engine
    """

    def __init__(self) -> None:
        self.ready_pixels = 0
        self._joinable: dict[UploadKey, Task] = {}  # the later one if two tasks with different bytes have the same key
        self._undecoded: list[Task] = []
        self._heavy: list[Task] = []  # undecoded too, for the threads that decode heavy images
        self._ready: dict[BatchKey, list[Task]] = {}

    def __len__(self) -> int:
        return len(self._undecoded) + len(self._heavy) + sum(map(len, self._ready.values()))

    def bytes(self) -> int:
        """The total size of the waiting uploads and decoded images."""
        return sum(task.bytes() for tasks in (self._undecoded, self._heavy, *self._ready.values()) for task in tasks)

    # --- requests ------------------------------------------------------------------------------------------------

    def join(self, task: Task, waiter: Waiter) -> Task:
        """Adds a request to an existing task with the same bytes, else to its new `task`. Returns the task used."""
        key = task.upload_key
        same = self._joinable.get(key)
        if same is None or same.data != task.data:
            task.waiters.append(waiter)
            self._joinable[key] = task
            insort(self._undecoded, task, key=_rank)
            return task
        same.waiters.append(waiter)
        if task.rank < same.rank:
            self._move_forward(same, task.rank)
        return same

    def leave(self, task: Task, waiter: Waiter) -> bool:
        """Removes a request, and also its task if the task is waiting and has no other request.

        A task on which a thread is working is finished, but its result is discarded. Returns whether a decoded image
        was removed.
        """
        if waiter in task.waiters:
            task.waiters.remove(waiter)
        if task.waiters or task.stage != "queue":
            return False
        self.close(task)
        if task.canvas is None:
            if task in self._undecoded_like(task):
                self._undecoded_like(task).remove(task)
            return False
        return self._remove_ready(task)

    def close(self, task: Task) -> list[Waiter]:
        """Prevents further requests from joining the task. Returns the requests that wait for it."""
        key = task.upload_key
        if self._joinable.get(key) is task:
            del self._joinable[key]
        return list(task.waiters)

    # --- threads -------------------------------------------------------------------------------------------------

    @property
    def has_undecoded(self) -> bool:
        return bool(self._undecoded)

    def take_undecoded(self) -> Task:
        task = self._undecoded.pop(0)
        task.stage = "decode"
        return task

    def put_back(self, task: Task) -> bool:
        """Puts a task back that was not decoded: among the heavy ones if it has a claim, else among the others.

        If no request waits for it any more, drops it and returns False.
        """
        task.stage = "queue"
        if not task.waiters:
            self.close(task)
            return False
        insort(self._undecoded_like(task), task, key=_rank)
        return True

    def heavy(self) -> list[Task]:
        """The waiting heavy tasks in order of rank."""
        return list(self._heavy)

    def take_heavy(self, task: Task) -> None:
        self._heavy.remove(task)
        task.stage = "decode"

    def add_ready(self, task: Task, canvas: Canvas) -> bool:
        """Puts a decoded task back into the queue. If no request waits for it any more, drops it and returns False."""
        task.stage = "queue"
        task.canvas = canvas
        if not task.waiters:
            self.close(task)
            return False
        insort(self._ready.setdefault(task.batch_key, []), task, key=_rank)
        self.ready_pixels += canvas.memory_pixels
        return True

    def heads(self) -> Iterator[Head]:
        """The ready tasks by batch key, in no particular order."""
        return (Head(key, len(tasks), tasks[0].rank) for key, tasks in self._ready.items())

    def take_ready(self, key: BatchKey) -> Task | None:
        """Removes and returns the first decoded task with this key, or returns None if there is none."""
        tasks = self._ready.get(key)
        if tasks is None:
            return None
        task = tasks.pop(0)
        self._no_longer_ready(task)
        if not tasks:
            del self._ready[key]
        return task

    def _undecoded_like(self, task: Task) -> list[Task]:
        return self._heavy if task.claim else self._undecoded

    def _move_forward(self, task: Task, rank: float) -> None:
        task.rank = rank
        if task.stage != "queue":
            return
        tasks = self._ready.get(task.batch_key, []) if task.canvas else self._undecoded_like(task)
        if task in tasks:
            tasks.remove(task)
            insort(tasks, task, key=_rank)

    def _remove_ready(self, task: Task) -> bool:
        key = task.batch_key
        tasks = self._ready.get(key, [])
        if task not in tasks:
            return False
        tasks.remove(task)
        self._no_longer_ready(task)
        if not tasks:
            del self._ready[key]
        return True

    def _no_longer_ready(self, task: Task) -> None:
        assert task.canvas is not None
        self.ready_pixels -= task.canvas.memory_pixels
