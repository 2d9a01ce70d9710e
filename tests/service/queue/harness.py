"""A batcher under a test's control: a clock, gates for engines, and a way to wait until all threads have stopped."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from PIL import Image

from service.engine.devices import Budget, Device
from service.engine.engine import Engine
from service.engine.providers import CPU, CUDA
from service.images.fit import Canvas
from service.queue import batcher as batcher_module
from service.queue.batcher import Batcher
from service.queue.memory import MemoryBudget
from service.telemetry.metrics import Metrics

WIDE, TALL = (64, 96), (96, 64)
SEVERAL = 100 * 64 * 96  # a budget that no test here fills
HANG_SECONDS = 60.0  # of real time; after that, a test counts as hanging


class Clock:
    """A clock that only the test moves forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers follow a test's clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def time(self) -> float:
        return self.clock()


def run(clock: Clock, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test on an event loop with this clock. A test that hangs is cancelled."""

    async def guarded() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task
        guard = threading.Timer(HANG_SECONDS, lambda: loop.call_soon_threadsafe(task.cancel))
        guard.daemon = True
        guard.start()
        try:
            await test()
        finally:
            guard.cancel()

    with asyncio.Runner(loop_factory=lambda: ClockedLoop(clock)) as runner:
        runner.run(guarded())


class Hold:
    """A place where threads stop until the test lets one of them, or all of them, pass."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._permits = 0
        self._open = False

    def stop_here(self) -> None:
        with self._changed:
            self._inside += 1
            assert self._changed.wait_for(lambda: self._open or self._permits, HANG_SECONDS)
            self._permits -= not self._open
            self._inside -= 1

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._open = False

    def let_one_pass(self) -> None:
        with self._changed:
            self._permits += 1
            self._changed.notify()

    def stopped(self) -> int:
        """The number of threads that are stopped here."""
        with self._changed:
            return 0 if self._open else max(0, self._inside - self._permits)


class CountingCondition(threading.Condition):
    """A condition that counts the threads that wait and have not been notified."""

    waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting += 1
        return super().wait(timeout)

    def notify(self, n: int = 1) -> None:
        self.waiting -= min(n, self.waiting)
        super().notify(n)


class CountingTurn(threading.Semaphore):
    """A device's turn that counts the threads that wait for it."""

    def __init__(self, runs: int) -> None:
        super().__init__(runs)
        self._changed = threading.Lock()
        self._asked, self._free = 0, runs

    def __enter__(self) -> Any:
        with self._changed:
            self._asked += 1
        taken = super().__enter__()
        with self._changed:
            self._asked -= 1
            self._free -= 1
        return taken

    def __exit__(self, *how: Any) -> None:
        with self._changed:
            self._free += 1
        super().__exit__(*how)

    def free(self) -> int:
        """The number of threads that could get a turn now."""
        with self._changed:
            return self._free

    def stopped(self) -> int:
        """The number of threads that wait, none of which can go on."""
        with self._changed:
            return max(0, self._asked - self._free)


class Standstill:
    """Detects when all threads of the batchers created after it have stopped, without work or at a Hold."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads = 0
        self._conditions: list[CountingCondition] = []
        self._holds: list[Hold | CountingTurn] = []
        monkeypatch.setattr(batcher_module, "Condition", self._condition)

    def _condition(self, lock: threading.Lock) -> CountingCondition:
        self._conditions.append(CountingCondition(lock))
        return self._conditions[-1]

    def hold(self) -> Hold:
        hold = Hold()
        self._holds.append(hold)
        return hold

    def turn(self, runs: int) -> CountingTurn:
        turn = CountingTurn(runs)
        self._holds.append(turn)
        return turn

    def reached(self) -> bool:
        # All conditions share the batcher's lock. While it is held, no thread can be notified or counted twice.
        with self._conditions[0]:
            waiting = sum(condition.waiting for condition in self._conditions)
            return waiting + sum(hold.stopped() for hold in self._holds) == self.threads

    async def settle(self) -> None:
        """Returns when the threads have stopped and the event loop has nothing left to do."""
        deadline = time.monotonic() + HANG_SECONDS
        turns = 0
        while (
            turns < 5
        ):  # a delivery takes three steps: the call from the thread, the future, and the task that awaits it
            await asyncio.sleep(0)
            turns = turns + 1 if self.reached() else 0
            if not turns:
                assert time.monotonic() < deadline, "the threads do not come to a standstill"
                time.sleep(0.0005)  # real time, so that the threads can run


class Gate:
    """A served model whose engine records its runs and stops each one until the gate is opened.

    preparing  where threads stop before they prepare a batch; open unless a test replaces it
    unpacking  where threads stop before they read the outputs; likewise
    """

    prefers_same_shape = False

    def __init__(self, engine: Engine, hold: Hold) -> None:
        self.engine = engine
        self.geometry = engine.card.geometry
        self.hold = hold
        self.preparing, self.unpacking = Hold(), Hold()
        self.preparing.open()
        self.unpacking.open()
        self.prepared: list[tuple[tuple[int, int], int]] = []
        self.batches: list[tuple[tuple[int, int], int]] = []
        self.levels: list[int] = []
        self.threads: list[int] = []
        self.devices: list[Device] = []

    def open(self) -> None:
        self.hold.open()

    def close(self) -> None:
        self.hold.close()

    def engine_on(self, device: Device) -> Any:
        return GateOn(self, device)

    def images_to_take(self, canvas: tuple[int, int], ready: int, most: int) -> int:
        return min(ready, most)

    def prepare(self, canvases: list[Canvas], proposals_only: bool, threads: int) -> Any:
        self.preparing.stop_here()
        self.prepared.append((canvases[0].size, len(canvases)))
        return canvases, proposals_only, threads

    def execute(self, prepared: Any) -> Any:
        canvases, proposals_only, threads = prepared
        self.batches.append((canvases[0].size, len(canvases)))
        self.levels += [int(canvas.pixels[0, 0, 0]) for canvas in canvases]
        self.threads.append(threads)
        self.hold.stop_here()
        return self.engine.run(canvases, proposals_only)

    def results(self, executed: Any) -> Any:
        self.unpacking.stop_here()
        return executed

    def run(self, canvases: list[Canvas], proposals_only: bool, threads: int) -> Any:
        return self.results(self.execute(self.prepare(canvases, proposals_only, threads)))

    def probe(self) -> None:
        self.engine.probe()


class GateOn:
    """A gate as the engine on one device."""

    def __init__(self, gate: Gate, device: Device) -> None:
        self._gate, self._device = gate, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gate, name)

    def prepare(self, *batch: Any) -> Any:
        self._gate.devices.append(self._device)
        return self._gate.prepare(*batch)


class Failing(Gate):
    """An engine that raises `error` for batches of more than `most` images. Its gate is open."""

    def __init__(self, engine: Engine, error: BaseException, most: int = 0) -> None:
        super().__init__(engine, Hold())
        self.error, self.most = error, most
        self.open()

    def execute(self, prepared: Any) -> Any:
        canvases, *_ = prepared
        if len(canvases) > self.most:
            raise self.error
        return super().execute(prepared)


class Queue:
    """A batcher on devices of one kind, and the fatal failures that it reported."""

    def __init__(
        self,
        encode: Callable[..., bytes],
        clock: Clock,
        standstill: Standstill,
        runs: int = 1,
        pixels: int = SEVERAL,
        devices: int = 1,
        gpu: bool = False,
        cores: int = 4,
        memory: int = 2**40,
        heavy: int = 1,
        lanes: int = 0,
    ) -> None:
        self.metrics = Metrics()
        self.fatal: list[str] = []
        self.devices = [
            Device(CUDA if gpu else CPU, index, runs, 1 if gpu else cores, not gpu, 1, Budget(pixels, clock), lanes)
            for index in range(devices)
        ]
        for device in self.devices:
            device.turn = standstill.turn(runs)
        self._encode = encode
        self._standstill = standstill
        decoders = 2 * gpu
        self.memory = MemoryBudget(memory)
        self.batcher = Batcher(
            self.devices, decoders, heavy, 1_000_000, self.memory, self.metrics, self.fatal.append, clock
        )
        standstill.threads += devices * max(runs, lanes) + decoders + heavy

    def submit(
        self, model: Any, level: int, size: tuple[int, int] = WIDE, timeout: float = 1e6, **how: Any
    ) -> asyncio.Task[Any]:
        """Sends an image of one grey `level`, which identifies its answer."""
        data = self._encode(Image.new("RGB", size[::-1], (level, level, level)))
        return self.send(model, data, timeout, **how)

    def send(self, model: Any, data: bytes, timeout: float = 1e6, **how: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.batcher.answer(data, model, False, timeout, **how))

    async def after(self, gate: Gate, *levels: int) -> list[asyncio.Task[Any]]:
        """Sends the first level, and the others once the first is in the engine."""
        sent = [self.submit(gate, levels[0])]
        await self._standstill.settle()
        sent += [self.submit(gate, level) for level in levels[1:]]
        await self._standstill.settle()
        return sent

    async def expected_wait_behind_one(self, gate: Gate) -> float:
        """The expected wait while one image is in the engine and one waits. The gate is open afterwards."""
        gate.close()
        sent = await self.after(gate, 101, 102)
        expected = self.batcher.expected_wait()
        gate.open()
        await asyncio.gather(*sent)
        return expected

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0


def level_of(answer: Any) -> int:
    return round(float(answer.result.scores[0]) * 255)
