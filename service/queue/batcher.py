"""Decodes images and runs them in batches, in threads; handles deadlines, cancellation and priorities (contract 5).

Threads take their work from the queue themselves, so they never wait for the event loop between two batches. When the
event loop distributed the work, two cores were idle for 7 % of the time with 16 clients. A GPU's threads only run
batches, and further threads decode; a CPU's threads do both, because both need the same cores.

Decoding cannot be interrupted, and a large image takes seconds and hundreds of megabytes. So the cost is estimated from
the header first. Heavy images go to threads of their own, which yield to all others, and begin only when the memory
budget has room. Light images that take longer than most let shorter ones pass for a limited time.

Batching is work-conserving: an idle engine takes waiting images at once, and a batch forms only while all engines are
busy, so there is no delay to tune. A batch never mixes models, canvases or graphs. `batch_choice` says which images are
next. On a GPU two threads work on each run, so that one prepares a batch while the batch of the other one runs.

One lock guards all changing state: the queue, the estimates, and the counts in this class. It is never held while an
image is decoded or run. Futures and timers belong to the event loop and are used only there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Condition, Lock, Thread

from PIL import Image

from service.engine.cores import run_in_background
from service.engine.devices import Device
from service.engine.engine import Result
from service.engine.isolation import EngineFailedError, NoMemoryLeftError, Ran, isolate
from service.images import cost
from service.images.cost import Cost
from service.images.decode import ImageError, decode
from service.images.fit import Canvas
from service.queue.batch_choice import BatchChoice
from service.queue.device_run import DeviceRun
from service.queue.memory import Claim, MemoryBudget, TooMuchMemoryError
from service.queue.pace import Pace
from service.queue.tasks import BatchKey, ClientLoad, RunnableModel, Task, TaskQueue, TimedResult, Waiter
from service.telemetry.metrics import Metrics

# A light image is decoded within cost.LIGHT_SECONDS. If it takes more than PROMPT_SECONDS, shorter ones that arrive
# within PATIENCE times its own time may pass it, so that they do not wait behind a hundred of its kind.
PROMPT_SECONDS = 0.02
PATIENCE = 20
BULK_PATIENCE = 5.0  # seconds for which a bulk request yields to interactive ones; limited, so that it is not starved

log = logging.getLogger(__name__)


class DeadlinePassedError(Exception):
    """The request's deadline passed before its result was ready, or would pass before it could be."""


class _NotNowError(Exception):
    """Decoding stops after the header, because the image should wait."""

    def __init__(self, cost: Cost) -> None:
        super().__init__(cost)
        self.cost = cost


@dataclass(eq=False)
class Batch:
    """The tasks of one run, and the number of threads that it may use."""

    key: BatchKey
    tasks: list[Task]
    threads: int


class Batcher:
    """Decodes images and runs them on the engines of `devices`, in threads of its own."""

    def __init__(
        self,
        devices: Sequence[Device],
        decoders: int,
        heavy_decoders: int,
        max_pixels: int,
        memory: MemoryBudget,
        metrics: Metrics,
        on_fatal: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the threads.

        decoders        number of threads that only decode light images
        heavy_decoders  number of threads that only decode heavy images
        max_pixels      limit per image
        memory          the budget for decoding heavy images
        on_fatal        called on the event loop with the reason when an engine dies
        clock           returns seconds since an arbitrary time
        """
        self._concurrent_runs = sum(device.runs for device in devices)
        self._decode_ahead = sum(
            device.lanes * device.budget.pixels * (1 if device.decodes else 2) for device in devices
        )
        self._max_pixels = max_pixels
        self._memory = memory
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._clock = clock

        self._lock = Lock()
        self._to_decode = Condition(self._lock)
        self._to_decode_heavy = Condition(self._lock)
        # A GPU's threads wait for decoded images. Each GPU has a condition of its own, so that none wakes for another.
        self._to_run = {device: Condition(self._lock) for device in devices if not device.decodes}
        self._choices = {device: BatchChoice(device, self._concurrent_runs) for device in devices}
        self._queue = TaskQueue()
        self._pace = Pace()
        self._busy = 0  # number of threads that are decoding or running a batch
        self._closing = False

        self._busy_seconds = {device: metrics.engine_seconds.labels(device.name) for device in devices}
        self._shape_changes = {device: metrics.shape_changes.labels(device.name) for device in devices}
        metrics.queue_depth.set_function(self._waiting)
        metrics.waiting_bytes.set_function(self._waiting_bytes)
        for device in devices:
            metrics.batch_budget.labels(device.name).set_function(partial(getattr, device.budget, "pixels"))
            for number in range(device.lanes):
                condition = self._condition(device)
                job = partial(self._next, device, device.decodes)
                self._start(f"engine-{device.name}-{number}", condition, job, device)
        for number in range(decoders):
            self._start(f"decode-{number}", self._to_decode, partial(self._next, None, True))
        for number in range(heavy_decoders):
            self._start(f"decode-heavy-{number}", self._to_decode_heavy, self._next_heavy)
        memory.on_release(self._memory_released)

    # --- on the event loop ---------------------------------------------------------------------------------------

    async def answer(
        self,
        data: bytes,
        model: RunnableModel,
        proposals_only: bool,
        timeout: float,
        bulk: bool = False,
        load: ClientLoad | None = None,
        digest: str | None = None,
        when_gone: Callable[[Callable[[], object]], None] | None = None,
    ) -> TimedResult:
        """The result for the image in `data`, whose SHA-256 is `digest` if already known.

        `load` is what the client has in flight, this image included. The image is run as if it had arrived after the
        time that the others take, so that a client that sends many at once does not delay the images of others.

        `when_gone` registers a callback for the client's disconnect, which drops queued work and raises CancelledError.

        Raises DeadlinePassedError after `timeout` seconds, ImageError if the bytes cannot be decoded,
        TooMuchMemoryError if decoding would need more than the budget, EngineFailedError if the engine fails on the
        image.
        """
        loop = asyncio.get_running_loop()
        now = self._clock()
        waiter = Waiter(loop.create_future(), now, now + timeout)
        rank = (self._rank(now, model, load) if load else now) + BULK_PATIENCE * bulk
        task = self._join(Task(data, model, proposals_only, loop, rank, digest), waiter)
        timer = loop.call_later(timeout, self._expire, task, waiter)
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
            del data, task, waiter  # an exception would keep this frame, and so these objects, in memory

    def _rank(self, now: float, model: RunnableModel, load: ClientLoad) -> float:
        """The rank of an image that arrives `now`: later, the more its client already has in flight.

        The images of one client keep the order in which they arrived, although the estimated times change.
        """
        patience = 0.0
        if load.in_flight > 1:
            with self._lock:
                # images have to wait for each other before the time between answers is known
                each = max(self._pace.seconds_between_answers, self._pace.shortest_run(model) / self._concurrent_runs)
            patience = min(BULK_PATIENCE, (load.in_flight - 1) * each)
        load.last_rank = max(load.last_rank, now + patience)
        return load.last_rank

    def expected_wait(self) -> float:
        """Seconds that a new image would wait at the current rate."""
        with self._lock:
            return len(self._queue) * self._pace.seconds_between_answers

    def close(self) -> None:
        """Ends the threads after they have finished the queued work."""
        with self._lock:
            self._closing = True
            self._to_decode.notify_all()
            self._to_decode_heavy.notify_all()
            for condition in self._to_run.values():
                condition.notify_all()

    def _join(self, new: Task, waiter: Waiter) -> Task:
        with self._lock:
            task = self._queue.join(new, waiter)
            if task is new:
                self._to_decode.notify()
        if task is not new:
            self._metrics.shared.inc()
        return task

    def _expire(self, task: Task, waiter: Waiter) -> None:
        if not waiter.future.done():
            waiter.settle(DeadlinePassedError())
            self._leave(task, waiter, "deadline")

    def _leave(self, task: Task, waiter: Waiter, reason: str) -> None:
        """Removes a request that ends without a result."""
        with self._lock:
            stage = task.stage
            if self._queue.leave(task, waiter):
                self._to_decode.notify_all()
                self._to_decode_heavy.notify_all()
            self._ignore_idle_time()
            unclaimed = None if task.waiters else task.claim
        if unclaimed:
            self._memory.withdraw(unclaimed)
        self._metrics.cancelled.labels(reason, stage).inc()

    def _deliver(self, tasks: Sequence[Task], outcomes: Sequence[Result | Exception]) -> None:
        """Answers all requests that wait for the tasks of a batch."""
        began = min(task.decode_began for task in tasks)
        with self._lock:
            self._pace.learn_answers(len(tasks), began, self._clock())
        for task, outcome in zip(tasks, outcomes, strict=True):
            self._settle(task, outcome)

    def _settle(self, task: Task, outcome: Result | Exception) -> None:
        """Passes a task's result or error to all requests that wait for it."""
        with self._lock:
            waiters = self._queue.close(task)
            self._ignore_idle_time()
        for waiter in waiters:
            waiter.settle(outcome if isinstance(outcome, Exception) else task.timed(outcome, waiter.arrived))

    def _give_up(self, tasks: Sequence[Task]) -> None:
        """Ends tasks whose deadline would pass before the end of their run."""
        for task in tasks:
            with self._lock:
                waiters = list(task.waiters)
            for waiter in waiters:
                self._expire(task, waiter)

    def _ignore_idle_time(self) -> None:
        if not self._queue:
            self._pace.forget_last_answer()

    def _waiting(self) -> int:
        with self._lock:
            return len(self._queue)

    def _waiting_bytes(self) -> int:
        with self._lock:
            return self._queue.bytes()

    # --- in the threads ------------------------------------------------------------------------------------------

    def _start(
        self, name: str, condition: Condition, job: Callable[[], Task | Batch | None], device: Device | None = None
    ) -> None:
        Thread(target=self._work, args=(condition, job, device), name=name, daemon=True).start()

    def _work(self, condition: Condition, next_job: Callable[[], Task | Batch | None], device: Device | None) -> None:
        """The loop of a thread that takes jobs from `next_job`, and waits on `condition` while there are none."""
        if condition is self._to_decode_heavy:
            run_in_background()
        while True:
            with self._lock:
                while (job := next_job()) is None:
                    if self._closing:
                        return
                    condition.wait()
                self._busy += 1
            self._do(device, job)
            del job  # otherwise a waiting thread would keep its last image in memory
            with self._lock:
                self._busy -= 1

    def _do(self, device: Device | None, job: Task | Batch) -> None:
        try:
            if isinstance(job, Task):
                self._decode(job)
            else:
                assert device is not None
                self._run(device, job)
        except BaseException:  # the thread must survive any failure
            log.exception("a thread of the queue failed on its work")
            tasks = [job] if isinstance(job, Task) else job.tasks
            _call_soon(tasks[0].loop, self._deliver, tasks, [EngineFailedError()] * len(tasks))

    def _memory_released(self) -> None:
        with self._lock:
            self._to_decode_heavy.notify_all()

    # The methods from here to _condition need the lock.

    def _next(self, device: Device | None, decodes: bool) -> Task | Batch | None:
        """The next job of a thread: a batch to run, a task to decode, or None if there is nothing to do."""
        if device is not None:
            decode_first = decodes and self._may_decode() and not self._choices[device].has_full_batch(self._queue)
            if not decode_first and (batch := self._form_batch(device)):
                return batch
        # checked again, because forming a batch may have dropped decoded images and so made room
        return self._queue.take_undecoded() if decodes and self._may_decode() else None

    def _next_heavy(self) -> Task | None:
        """The first heavy task for which there is memory, or None."""
        for task in self._queue.heavy() if self._has_room() else ():
            assert task.claim
            try:
                if self._memory.begin(task.claim):
                    self._queue.take_heavy(task)
                    return task
            except TooMuchMemoryError as error:  # the budget has become smaller since the task was put there
                self._queue.take_heavy(task)
                _call_soon(task.loop, self._settle, task, error.with_traceback(None))
        return None

    def _may_decode(self) -> bool:
        return self._queue.has_undecoded and self._has_room()

    def _has_room(self) -> bool:
        """Whether further images may be decoded, or enough decoded ones wait for an engine."""
        return self._queue.ready_pixels < self._decode_ahead

    def _form_batch(self, device: Device) -> Batch | None:
        """The device's next batch, or None. Drops tasks that would end after their deadline."""
        choice = self._choices[device]
        device.budget.recover()
        late: list[Task] = []
        tasks: list[Task] = []
        while not tasks and (chosen := choice.next(self._queue)):
            key = chosen.key
            earliest_end = self._clock() + self._pace.fastest_run(key.model, key.canvas)
            while len(tasks) < chosen.images and (task := self._queue.take_ready(key)):
                (tasks if task.last_deadline > earliest_end else late).append(task)
        if late or tasks:
            self._to_decode.notify_all()  # there is again room for decoded images
            self._to_decode_heavy.notify_all()
        for task in late:
            self._queue.close(task)
            self._pace.lower_run_estimate(task.model, task.batch_key.canvas)
        if late:
            _call_soon(late[0].loop, self._give_up, late)
        if not tasks:
            return None
        for task in tasks:
            task.stage = "inference"
        batch = Batch(tasks[0].batch_key, tasks, max(1, device.cores // (self._busy + 1 + len(self._queue))))
        if choice.formed(batch, batch.key, len(tasks)):
            self._shape_changes[device].inc()
        return batch

    def _wake(self, device: Device) -> None:
        """Wakes a thread of the device if there is something to run on it now."""
        if self._choices[device].next(self._queue):
            self._condition(device).notify()

    def _condition(self, device: Device) -> Condition:
        """Where the device's threads wait for work."""
        return self._to_run.get(device, self._to_decode)

    # The methods from here on take the lock themselves.

    def _decode(self, task: Task) -> None:
        task.decode_began = self._clock()
        task.digest = task.digest or hashlib.sha256(task.data).hexdigest()
        claim = task.claim  # putting the task back may set it
        check = None if claim else partial(self._check_cost, task)
        try:
            canvas = decode(task.data, task.model.geometry, self._max_pixels, check)
        except _NotNowError as not_now:
            self._put_back(task, not_now.cost)
            return
        except MemoryError:
            log.warning("there is not enough memory to decode an image of %d bytes", len(task.data))
            _call_soon(task.loop, self._settle, task, NoMemoryLeftError())
            return
        except (ImageError, TooMuchMemoryError) as error:
            # Drop the traceback, because its frames would keep the image in memory as long as the error exists.
            error.__cause__ = error.__context__ = None
            _call_soon(task.loop, self._settle, task, error.with_traceback(None))
            return
        finally:
            if claim:
                self._memory.end(claim)
        task.decode_ended = self._clock()
        with self._lock:
            if self._queue.add_ready(task, canvas):
                for device in self._to_run:
                    self._wake(device)
                self._to_decode.notify()  # on a CPU, idle threads wait on this condition and may run it

    def _check_cost(self, task: Task, header: Image.Image) -> None:
        """Raises TooMuchMemoryError if the image can never be decoded, _NotNowError if other work should go first."""
        price = cost.of_decoding(header, task.data, task.model.geometry)
        if not price.light:
            self._memory.check(price.memory)
            raise _NotNowError(price)
        if price.seconds > PROMPT_SECONDS and not task.priced and self._queue.has_undecoded:
            raise _NotNowError(price)

    def _put_back(self, task: Task, price: Cost) -> None:
        """Returns a task to the queue: a heavy one for the threads of their own, another one at a later place."""
        with self._lock:
            task.priced = True
            if price.light:
                task.rank += PATIENCE * price.seconds
            else:
                task.claim = Claim(price.memory)
            if self._queue.put_back(task):
                (self._to_decode if price.light else self._to_decode_heavy).notify()

    def _run(self, device: Device, batch: Batch) -> None:
        key, tasks = batch.key, batch.tasks
        canvases = [task.canvas for task in tasks if task.canvas is not None]
        turn_began, turn_ended = _nothing, _nothing
        if device.prepares_ahead:
            turn_began, turn_ended = (partial(f, device, batch) for f in (self._turn_began, self._turn_ended))
        engine = key.model.engine_on(device)
        run = DeviceRun(device, engine, key.proposals_only, batch.threads, self._clock, turn_began, turn_ended)
        began = self._clock()
        try:
            ran = Ran([*run.run(canvases)], False, None)
        except Exception as error:
            ran = isolate(error, run.run_again, run.probe, canvases)
        finally:
            turn_ended()
        began += run.waited  # the wait for the turn counts as time in the queue
        ended = self._clock()
        for task in tasks:
            task.run_began, task.run_ended = began, ended
        with self._lock:
            self._pace.learn_run(key.model, key.canvas, ended - began)
        # Count before answering, so that a client that then reads the metrics finds its own request counted.
        self._observe(device, key, canvases, run.running)
        if ran.out_of_memory:
            self._shrink_budget(device, key, len(tasks))
        if ran.fatal:
            _call_soon(tasks[0].loop, self._on_fatal, ran.fatal)
        _call_soon(tasks[0].loop, self._deliver, tasks, ran.results)

    def _turn_began(self, device: Device, batch: Batch) -> None:
        with self._lock:
            self._choices[device].began(batch)
            self._wake(device)

    def _turn_ended(self, device: Device, batch: Batch) -> None:
        with self._lock:
            self._choices[device].ended(batch)
            self._wake(device)

    def _shrink_budget(self, device: Device, key: BatchKey, images: int) -> None:
        """Reduces the budget to half of the batch for which memory ran out, unless that was a single image."""
        canvas = math.prod(key.canvas)
        if images > 1:
            device.budget.shrink(max(canvas, canvas * images // 2))
        self._metrics.out_of_memory.labels(device.name).inc()
        log.warning("memory ran out on %s; the limit for a batch is now %d pixels", device.name, device.budget.pixels)

    def _observe(self, device: Device, key: BatchKey, canvases: Sequence[Canvas], seconds: float) -> None:
        metrics = self._metrics
        padded = math.prod(key.canvas) * len(canvases)
        covered = sum(math.prod(canvas.image_size) for canvas in canvases)
        metrics.batch_size["proposals" if key.proposals_only else "full"].observe(len(canvases))
        metrics.batch_fill.observe(min(1.0, padded / device.budget.pixels))
        metrics.padding.observe(1 - covered / padded)
        self._busy_seconds[device].inc(seconds)


def _nothing() -> None:
    """Does nothing."""


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    """Calls `function` on the event loop, unless the loop is closed."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *arguments)
