"""Under a random load, no thread accesses the batcher's state without its lock.

The test uses subclasses of the batcher's classes. They record every access to a guarded attribute by a thread that does
not hold the lock. Which of the batcher's own attributes are state is detected at run time: those that are set again
after the batcher was created.
"""

import asyncio
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from service.engine import devices as devices_module
from service.engine.devices import Budget, Device
from service.engine.engine import Engine
from service.engine.isolation import EngineFailedError
from service.engine.providers import CPU, CUDA
from service.images import cost
from service.images.cost import MIB
from service.images.decode import ImageError
from service.queue import batcher as batcher_module
from service.queue.batch_choice import BatchChoice
from service.queue.batcher import Batcher, DeadlinePassedError
from service.queue.memory import MemoryBudget
from service.queue.pace import Pace
from service.queue.tasks import Task, TaskQueue
from service.telemetry.metrics import Metrics
from tests.service.queue.harness import HANG_SECONDS

GUARDED_OF_A_TASK = {"rank", "stage", "waiters"}


class OwnedLock:
    """A lock that knows which thread holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            self._owner = threading.get_ident()
        return taken

    def release(self) -> None:
        self._owner = None
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def held(self) -> bool:
        return self._owner == threading.get_ident()


class Checker:
    """Creates subclasses that record accesses without the lock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lock = OwnedLock()
        self.guarded = 0  # number of accesses with the lock
        self.violations: set[str] = set()
        monkeypatch.setattr(batcher_module, "Lock", lambda: self.lock)
        monkeypatch.setattr(batcher_module, "TaskQueue", self.checked(TaskQueue, lambda _: True))
        monkeypatch.setattr(batcher_module, "Pace", self.checked(Pace, lambda _: True))
        monkeypatch.setattr(
            batcher_module, "BatchChoice", self.checked(BatchChoice, lambda name: name != "looks_ahead")
        )
        monkeypatch.setattr(batcher_module, "Task", self.checked(Task, GUARDED_OF_A_TASK.__contains__))

    def note(self, kind: type, name: str) -> None:
        if self.lock.held():
            self.guarded += 1
        else:
            self.violations.add(f"{kind.__name__}.{name} in {threading.current_thread().name.rstrip('0123456789')}")

    def checked(self, kind: type, is_guarded: Callable[[str], bool], learns: bool = False) -> Any:
        """A subclass whose instances check each access to a guarded attribute after they are created.

        learns  whether an attribute that is set later is guarded from then on
        """
        changing: set[str] = set()

        class Checked(kind):  # type: ignore[valid-type,misc]
            def __init__(self, *values: Any, **named: Any) -> None:
                super().__init__(*values, **named)
                object.__setattr__(self, "made", True)

            def __getattribute__(this, name: str) -> Any:  # noqa: N805  self is the checker
                made = "made" in object.__getattribute__(this, "__dict__")
                if made and not name.startswith("__") and (is_guarded(name) or name in changing):
                    self.note(kind, name)
                return super().__getattribute__(name)

            def __setattr__(this, name: str, value: Any) -> None:  # noqa: N805
                if "made" in object.__getattribute__(this, "__dict__"):
                    if learns:
                        changing.add(name)
                    if is_guarded(name) or name in changing:
                        self.note(kind, name)
                super().__setattr__(name, value)

        return Checked

    def batcher(self, *values: Any) -> Any:
        return self.checked(Batcher, lambda _: False, learns=True)(*values)


@pytest.fixture
def often():
    """Makes the interpreter switch threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Moody:
    """A served model that sometimes runs out of memory."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.geometry = engine.card.geometry
        self.probe, self.prepare, self.results = engine.probe, engine.prepare, engine.results
        self.images_to_take, self.prefers_same_shape = engine.images_to_take, engine.prefers_same_shape
        self.random = random.Random(5)

    def engine_on(self, device: Device) -> Any:
        return self

    def run(self, *batch: Any) -> Any:
        return self.results(self.execute(self.prepare(*batch)))

    def execute(self, prepared: Any) -> Any:
        if self.random.random() < 0.2:
            raise MemoryError
        return self.engine.execute(prepared)


@pytest.mark.parametrize("gpu", [False, True])
def test_every_access_to_the_state_of_a_busy_batcher_holds_its_lock(plain, encode, monkeypatch, often, gpu):
    checker = Checker(monkeypatch)
    kind = CUDA if gpu else CPU
    places = [Device(kind, index, 2, 2, not gpu, 1, Budget(4 * 64 * 96), lanes=2 + 2 * gpu) for index in range(2)]
    metrics = Metrics()
    # Images of 300 x 200 pixels are heavy, and the budget has room for one of them at a time.
    monkeypatch.setattr(cost, "LIGHT_BYTES", cost.FIXED_BYTES + MIB)
    memory = MemoryBudget(2 * (cost.FIXED_BYTES + 2 * MIB))
    batcher = checker.batcher(places, 2 * gpu, 2, 1_000_000, memory, metrics, lambda reason: None)
    model = Moody(plain(fails_on_white=True))
    levels = [10, 50, 90, 130, 170, 255]  # this graph fails on 255
    uploads = [encode(Image.new("RGB", size, (level,) * 3)) for level in levels for size in ((96, 64), (64, 96))]
    uploads += [encode(Image.new("RGB", (300, 200), (level,) * 3)) for level in levels]
    uploads.append(b"hello")
    ended = threading.Event()

    def scrape() -> None:
        while not ended.is_set():
            metrics.scrape()

    async def load() -> list[Any]:
        choose = random.Random(1)

        async def client() -> list[Any]:
            outcomes = []
            for _ in range(40):
                wait = batcher.expected_wait()
                assert wait >= 0
                timeout = choose.choice([0.001, 0.01, 30, 30, 30])
                data = choose.choice(uploads) + b"%d" % choose.randrange(3)
                sent = asyncio.create_task(
                    batcher.answer(data, model, choose.random() < 0.3, timeout, choose.random() < 0.3)
                )
                if choose.random() < 0.1:
                    await asyncio.sleep(0.001)
                    sent.cancel()
                outcomes += await asyncio.gather(sent, return_exceptions=True)
            return outcomes

        every = await asyncio.gather(*(client() for _ in range(16)))
        return [outcome for outcomes in every for outcome in outcomes]

    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        outcomes = asyncio.run(asyncio.wait_for(load(), HANG_SECONDS))
    finally:
        ended.set()
        scraping.join()
        batcher.close()

    kinds = {type(outcome) for outcome in outcomes}
    assert {DeadlinePassedError, asyncio.CancelledError, EngineFailedError} < kinds
    assert any(issubclass(kind, ImageError) for kind in kinds)
    assert metrics.registry.get_sample_value("detector_shared_total") > 0
    assert memory.work == 0  # every claim was given back
    assert checker.guarded > 10_000
    assert checker.violations == set()


def test_the_checker_notices_an_access_without_the_lock(monkeypatch):
    checker = Checker(monkeypatch)
    tasks = batcher_module.TaskQueue()
    with checker.lock:
        assert len(tasks) == 0
    assert checker.violations == set()
    assert len(tasks) == 0
    assert any("TaskQueue" in violation for violation in checker.violations)


def test_the_checker_detects_which_attributes_of_a_class_are_state(monkeypatch):
    class Counter:
        def __init__(self) -> None:
            self.fixed, self.count = 1, 0

    checker = Checker(monkeypatch)
    counter = checker.checked(Counter, lambda _: False, learns=True)()
    with checker.lock:
        counter.count += 1
    assert counter.fixed == 1
    assert checker.violations == set()
    assert counter.count == 1
    assert len(checker.violations) == 1


def test_a_budget_is_changed_under_its_own_lock(monkeypatch, often):
    lock = OwnedLock()
    monkeypatch.setattr(devices_module, "Lock", lambda: lock)
    monkeypatch.setattr(devices_module, "RECOVERY_SECONDS", -1)
    unguarded = []

    class Checked(Budget):
        def __setattr__(self, name: str, value: Any) -> None:
            if hasattr(self, "made") and not lock.held():
                unguarded.append(name)
            super().__setattr__(name, value)

    budget = Checked(1024)
    budget.made = True

    def change(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(2000):
            if choose.random() < 0.5:
                budget.shrink(choose.choice([1, 16, 512]))
            else:
                budget.recover()
            assert 1 <= budget.pixels <= 1024

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))  # raises what `change` raises
    assert unguarded == []
    while budget.pixels < 1024:
        budget.recover()
    assert budget.pixels == 1024
