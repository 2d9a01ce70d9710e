"""The queue between the event loop and the engines: batches, deadlines, cancellation, priorities (contract 5).

Threads pull their work from here, so none waits for the event loop between two batches: fed by the loop, two cores
stood idle for 7 % of the time with 16 clients. A GPU's threads only run, and others decode for them; a CPU's threads do
both, since both take the same cores.

Work-conserving: an idle engine takes what waits, at once; a batch forms only while all are busy. There is no delay to
tune. What waits for an engine is kept by batch key (a batch never mixes models, canvases or graphs); the key whose head
has waited longest goes first, so no size can starve another.

One lock guards the state, and is never held while anything runs. Futures belong to the event loop and are only touched
there; only there do requests come and go, so threads may read who waits for an image.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import threading
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from service.engine.devices import Device
from service.engine.engine import Engine, Result
from service.engine.isolation import EngineFailedError, NoMemoryLeftError, run_apart
from service.images.decode import ImageError, decode
from service.images.fit import Canvas, Geometry
from service.telemetry.metrics import Metrics

BULK_PATIENCE = 5.0  # seconds by which a bulk request stands behind interactive ones; so it waits, but not for ever
LEARNING_RATE = 0.1  # of the present rate, per batch
LESS_SURE = 0.8  # of the time that a run takes, per image given up because of it

log = logging.getLogger(__name__)


class DeadlinePassedError(Exception):
    """The answer would have come too late."""


class Served(Protocol):
    """A model that can be asked."""

    geometry: Geometry

    def engine_on(self, device: Device) -> Engine: ...


class Likeness(NamedTuple):
    """What two requests for the same answer have in common; that their bytes are equal is compared when it is met."""

    tail: bytes
    length: int
    served: Served
    proposals_only: bool


class Key(NamedTuple):
    """What the members of a batch share."""

    served: Served
    canvas: tuple[int, int]
    proposals_only: bool


class Answer(NamedTuple):
    """An image's result, its SHA-256, the upright image's size, and where its time went (seconds)."""

    result: Result
    digest: str
    width: int
    height: int
    decode: float
    queue: float
    inference: float


@dataclass(eq=False)
class Waiter:
    """One request that waits for an image.

    The future only says that there is an `outcome`. An exception in it would hold the frames that it is raised through,
    and they hold the request, which holds the future: each refused image would wait for the garbage collector.
    """

    future: asyncio.Future[None]
    arrived: float
    deadline: float
    outcome: Answer | Exception = field(init=False)

    def settle(self, outcome: Answer | Exception) -> None:
        if not self.future.done():
            self.outcome = outcome
            self.future.set_result(None)


@dataclass(eq=False)
class Task:
    """One image on its way, and all who wait for it; `stage` is queue, decode or inference."""

    data: bytes
    served: Served
    proposals_only: bool
    rank: float
    digest: str | None = None
    waiters: list[Waiter] = field(default_factory=list)
    stage: str = "queue"
    canvas: Canvas | None = None
    decode_began: float = 0.0
    decode_ended: float = 0.0
    run_began: float = 0.0
    run_ended: float = 0.0

    @property
    def key(self) -> Key:
        assert self.canvas is not None
        return Key(self.served, self.canvas.size, self.proposals_only)

    @property
    def likeness(self) -> Likeness:
        # the head of a file is often that of another, its tail hardly ever
        return Likeness(self.data[-32:], len(self.data), self.served, self.proposals_only)

    def bytes(self) -> int:
        return len(self.data) + (self.canvas.pixels.nbytes if self.canvas else 0)

    def answer(self, result: Result, arrived: float) -> Answer:
        """For a request that came at `arrived`, which may be later than some of what was done for another."""
        assert self.canvas is not None
        return Answer(
            result,
            self.digest or "",
            self.canvas.width,
            self.canvas.height,
            decode=max(0.0, self.decode_ended - max(arrived, self.decode_began)),
            queue=max(0.0, self.decode_began - arrived) + max(0.0, self.run_began - max(arrived, self.decode_ended)),
            inference=self.run_ended - max(arrived, self.run_began),
        )


class Batch(NamedTuple):
    key: Key
    tasks: list[Task]
    threads: int


def _rank(task: Task) -> float:
    return task.rank


class Batcher:
    """Decodes images and gives them to the engines of `devices`, in threads of its own."""

    def __init__(
        self,
        devices: Sequence[Device],
        decoders: int,
        max_pixels: int,
        metrics: Metrics,
        on_fatal: Callable[[str], None],
    ) -> None:
        """`decoders`: threads that only decode; `max_pixels` of an image; `on_fatal` is told of a dead engine."""
        self._runs = sum(device.runs for device in devices)
        self._decode_ahead = sum(
            device.runs * device.budget.pixels * (1 if device.decodes else 2) for device in devices
        )
        self._max_pixels = max_pixels
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._loop: asyncio.AbstractEventLoop | None = None

        self._lock = threading.Lock()
        self._to_decode = threading.Condition(self._lock)
        self._to_run = threading.Condition(self._lock)
        self._closing = False
        self._tasks: dict[Likeness, Task] = {}  # in flight; of two that are only alike, the later
        self._undecoded: list[Task] = []  # these two by rank
        self._ready: dict[Key, list[Task]] = {}
        self._ready_pixels = 0
        self._busy = 0  # threads at work
        # seconds of the fastest run of late; what has less time left would be run for nothing
        self._fastest: WeakKeyDictionary[Served, dict[tuple[int, int], float]] = WeakKeyDictionary()
        self._spacing = 0.0  # seconds between answers while others wait
        self._last_answer: float | None = None

        self._busy_seconds = {device: metrics.engine_seconds.labels(device.name) for device in devices}
        metrics.queue_depth.set_function(self.waiting)
        metrics.waiting_bytes.set_function(self._waiting_bytes)
        for device in devices:
            metrics.batch_budget.labels(device.name).set_function(partial(getattr, device.budget, "pixels"))
            for number in range(device.runs):
                self._start(f"engine-{device.name}-{number}", device, device.decodes)
        for number in range(decoders):
            self._start(f"decode-{number}", None, True)

    # --- the event loop's side -----------------------------------------------------------------------------------

    async def answer(
        self,
        data: bytes,
        served: Served,
        proposals_only: bool,
        timeout: float,
        bulk: bool = False,
        digest: str | None = None,
        when_gone: Callable[[Callable[[], object]], None] | None = None,
    ) -> Answer:
        """The answer for the image in `data`, whose SHA-256 is `digest` if that is known.

        `when_gone` takes what is to be done when the client leaves: what still waits then costs nothing, and this
        raises CancelledError.

        Raises DeadlinePassedError after `timeout` seconds, ImageError if the bytes cannot be decoded,
        EngineFailedError if the engine fails on the image.
        """
        self._loop = asyncio.get_running_loop()
        now = time.monotonic()
        waiter = Waiter(self._loop.create_future(), now, now + timeout)
        task = self._join(Task(data, served, proposals_only, now + BULK_PATIENCE * bulk, digest), waiter)
        timer = self._loop.call_later(timeout, self._expire, task, waiter)
        if when_gone is not None:
            when_gone(waiter.future.cancel)
        try:
            await waiter.future
            if isinstance(waiter.outcome, Exception):
                raise waiter.outcome
            return waiter.outcome
        except asyncio.CancelledError:
            self._leave(task, waiter, "disconnected")
            raise
        finally:
            timer.cancel()
            del data, task, waiter  # what was raised holds this frame

    def waiting(self) -> int:
        """Images that wait to be decoded or for an engine."""
        return len(self._undecoded) + sum(map(len, list(self._ready.values())))

    def expected_wait(self) -> float:
        """Seconds until an image that came now would be run, at the present rate."""
        return self.waiting() * self._spacing

    def close(self) -> None:
        """Ends the threads once they are done with what they do."""
        with self._lock:
            self._closing = True
            self._to_decode.notify_all()
            self._to_run.notify_all()

    def _join(self, task: Task, waiter: Waiter) -> Task:
        """Adds a request with its `task`, or to one of the same image that is in flight. Returns the task."""
        likeness = task.likeness
        with self._lock:
            same = self._tasks.get(likeness)
            if same is None or same.data != task.data:
                task.waiters.append(waiter)
                self._tasks[likeness] = task
                insort(self._undecoded, task, key=_rank)
                self._to_decode.notify()
                return task
            same.waiters.append(waiter)
            if task.rank < same.rank:
                self._advance(same, task.rank)
        self._metrics.shared.inc()
        return same

    def _advance(self, task: Task, rank: float) -> None:
        task.rank = rank
        for queue in (self._undecoded, self._ready.get(task.key, []) if task.canvas else []):
            if task in queue:
                queue.remove(task)
                insort(queue, task, key=_rank)

    def _expire(self, task: Task, waiter: Waiter) -> None:
        if not waiter.future.done():
            waiter.settle(DeadlinePassedError())
            self._leave(task, waiter, "deadline")

    def _leave(self, task: Task, waiter: Waiter, reason: str) -> None:
        """Takes out a request; with the last one an image that waits goes too, one in the engine runs on unread."""
        with self._lock:
            if waiter in task.waiters:
                task.waiters.remove(waiter)
            if not task.waiters and task.stage == "queue":
                self._forget(task)
        self._rest()
        self._metrics.cancelled.labels(reason, task.stage).inc()

    def _unregister(self, task: Task) -> None:
        """From here on nobody else can join."""
        likeness = task.likeness
        if self._tasks.get(likeness) is task:
            del self._tasks[likeness]

    def _forget(self, task: Task) -> None:
        self._unregister(task)
        if task.canvas is None:
            if task in self._undecoded:
                self._undecoded.remove(task)
        elif task in (queue := self._ready.get(task.key, [])):
            queue.remove(task)
            self._ready_pixels -= math.prod(task.key.canvas)
            self._to_decode.notify_all()
            if not queue:
                del self._ready[task.key]

    def _deliver(self, tasks: Sequence[Task], outcomes: Sequence[Result | Exception]) -> None:
        """Answers all who wait for `tasks`."""
        self._learn(tasks)
        for task, outcome in zip(tasks, outcomes, strict=True):
            self._settle(task, outcome)

    def _settle(self, task: Task, outcome: Result | Exception) -> None:
        """Answers all who wait for one task, or tells them why there is no answer."""
        with self._lock:
            self._unregister(task)
        self._rest()
        for waiter in task.waiters:
            waiter.settle(outcome if isinstance(outcome, Exception) else task.answer(outcome, waiter.arrived))

    def _learn(self, tasks: Sequence[Task]) -> None:
        """The present rate, from the time between answers while others wait.

        It is never longer than an image takes from its decoding to its answer; that is learned when nobody waits too,
        so an estimate that is too long, for which nobody is let in to wait, does not last.
        """
        now = time.monotonic()
        if self._last_answer is not None:
            spacing = (now - self._last_answer) / len(tasks)
            self._spacing += (LEARNING_RATE if self._spacing else 1) * (spacing - self._spacing)
        self._spacing = min(self._spacing, now - min(task.decode_began for task in tasks))
        self._last_answer = now

    def _rest(self) -> None:
        """The time until the next answer says nothing when nobody waits for it."""
        if not self.waiting():
            self._last_answer = None

    def _give_up(self, tasks: Sequence[Task]) -> None:
        """Ends tasks that could not be answered in time any more."""
        for task in tasks:
            for waiter in list(task.waiters):
                self._expire(task, waiter)

    # --- the threads' side ---------------------------------------------------------------------------------------

    def _start(self, name: str, device: Device | None, decodes: bool) -> None:
        threading.Thread(target=self._work, args=(device, decodes), name=name, daemon=True).start()

    def _work(self, device: Device | None, decodes: bool) -> None:
        """A thread's life: `device` to run on, if any, and whether it decodes."""
        condition = self._to_decode if decodes else self._to_run
        while True:
            with self._lock:
                while (job := self._next(device, decodes)) is None:
                    if self._closing:
                        return
                    condition.wait()
                self._busy += 1
            self._do(device, job)
            del job  # a thread that waits must not keep the last image
            with self._lock:
                self._busy -= 1

    def _do(self, device: Device | None, job: Task | Batch) -> None:
        try:
            if isinstance(job, Task):
                self._decode(job)
            else:
                assert device is not None
                self._run(device, job)
        except BaseException:  # the thread must outlive whatever this was
            log.exception("a thread of the queue failed")
            tasks = [job] if isinstance(job, Task) else job.tasks
            self._call(self._deliver, tasks, [EngineFailedError()] * len(tasks))

    def _next(self, device: Device | None, decodes: bool) -> Task | Batch | None:
        decode_first = decodes and self._may_decode() and device is not None and self._too_few(device)
        if device is not None and not decode_first and (batch := self._take(device)):
            return batch
        if decodes and self._may_decode():
            task = self._undecoded.pop(0)
            task.stage = "decode"
            return task
        return None

    def _may_decode(self) -> bool:
        return bool(self._undecoded) and self._ready_pixels < self._decode_ahead

    def _share(self, device: Device) -> int:
        """What waits is shared among all engines, not only the idle ones, for the busy ones will soon be free: one that
        takes everything would leave the others without work."""
        return math.ceil(self.waiting() / (self._runs * device.depth))

    def _too_few(self, device: Device) -> bool:
        """Whether a thread that can also decode should do so before it runs, since no batch is full yet."""
        share = self._share(device)
        return not any(len(queue) >= min(share, _room(device, key)) for key, queue in self._ready.items())

    def _take(self, device: Device) -> Batch | None:
        """The next batch: from the key whose head has waited longest, within the budget and the engine's share."""
        device.budget.recover()
        late: list[Task] = []
        tasks: list[Task] = []
        while self._ready and not tasks:
            key = min(self._ready, key=lambda key: self._ready[key][0].rank)
            queue = self._ready[key]
            limit = min(self._share(device), _room(device, key))
            soonest = time.monotonic() + self._fastest.get(key.served, {}).get(key.canvas, 0.0)
            while queue and len(tasks) < limit:
                task = queue.pop(0)
                self._ready_pixels -= math.prod(key.canvas)
                (tasks if max(waiter.deadline for waiter in task.waiters) > soonest else late).append(task)
            if not queue:
                del self._ready[key]
        if late or tasks:
            self._to_decode.notify_all()  # there is room for decoded images again
        for task in late:
            self._unregister(task)
            self._doubt(task.key)
        if late:
            self._call(self._give_up, late)
        if not tasks:
            return None
        for task in tasks:
            task.stage = "inference"
        return Batch(key, tasks, max(1, device.cores // (self._busy + 1 + self.waiting())))

    def _doubt(self, key: Key) -> None:
        """Brings down the estimate of a run for each image that is given up for it; it might never be tried else."""
        fastest = self._fastest.get(key.served, {})
        if key.canvas in fastest:
            fastest[key.canvas] *= LESS_SURE

    def _decode(self, task: Task) -> None:
        task.decode_began = time.monotonic()
        task.digest = task.digest or hashlib.sha256(task.data).hexdigest()
        try:
            task.canvas = decode(task.data, task.served.geometry, self._max_pixels)
        except MemoryError:
            log.warning("there is no memory to decode an image of %d bytes", len(task.data))
            self._call(self._settle, task, NoMemoryLeftError())
            return
        except ImageError as error:
            # Without its traceback: the frames hold the image for as long as anything holds the error.
            error.__cause__ = error.__context__ = None
            self._call(self._settle, task, error.with_traceback(None))
            return
        task.decode_ended = time.monotonic()
        with self._lock:
            task.stage = "queue"
            if not task.waiters:
                self._unregister(task)
                return
            insort(self._ready.setdefault(task.key, []), task, key=_rank)
            self._ready_pixels += math.prod(task.key.canvas)
            self._to_run.notify()
            self._to_decode.notify()  # of a CPU's threads, one that is idle may run it

    def _run(self, device: Device, batch: Batch) -> None:
        key, tasks, threads = batch
        canvases = [task.canvas for task in tasks if task.canvas is not None]
        engine = key.served.engine_on(device)
        run = partial(engine.run, proposals_only=key.proposals_only, threads=threads)
        began = time.monotonic()
        ran = run_apart(run, engine.probe, canvases)
        ended = time.monotonic()
        for task in tasks:
            task.run_began, task.run_ended = began, ended
        fastest = self._fastest.setdefault(key.served, {})
        fastest[key.canvas] = min(ended - began, 1.05 * fastest.get(key.canvas, math.inf))
        # before anyone is answered, so that who then asks for the metrics finds the answer counted
        self._observe(device, key, canvases, ended - began)
        if ran.out_of_memory:
            self._shrink(device, key, len(tasks))
        if ran.fatal:
            self._call(self._on_fatal, ran.fatal)
        self._call(self._deliver, tasks, ran.results)

    def _shrink(self, device: Device, key: Key, pictures: int) -> None:
        """After memory ran out: half of what that batch had, but never less than an image, which has no half."""
        canvas = math.prod(key.canvas)
        if pictures > 1:
            device.budget.shrink(max(canvas, canvas * pictures // 2))
        self._metrics.out_of_memory.labels(device.name).inc()
        log.warning("memory ran out on %s; batches may have %d pixels now", device.name, device.budget.pixels)

    def _observe(self, device: Device, key: Key, canvases: Sequence[Canvas], took: float) -> None:
        metrics = self._metrics
        padded = math.prod(key.canvas) * len(canvases)
        covered = sum(canvas.pixels.shape[0] * canvas.pixels.shape[1] for canvas in canvases)
        metrics.batch_size["proposals" if key.proposals_only else "full"].observe(len(canvases))
        metrics.batch_fill.observe(min(1.0, padded / device.budget.pixels))
        metrics.padding.observe(1 - covered / padded)
        self._busy_seconds[device].inc(took)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """`function` on the event loop, soon."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _waiting_bytes(self) -> int:
        with self._lock:
            return sum(task.bytes() for queue in (self._undecoded, *self._ready.values()) for task in queue)


def _room(device: Device, key: Key) -> int:
    """Images of this key that a batch may have."""
    return max(1, device.budget.pixels // math.prod(key.canvas))
