"""Generates the load: clients in a separate process, in a closed loop or an open one.

Closed: each client sends its next image once it has the answer to the last. Open: images are due at times drawn
beforehand (a Poisson process), whatever the server does. Latency counts from the time an image was due, so a slow
server cannot slow the load down and thereby look better.
"""

import asyncio
import contextlib
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from benchmarks.load.decode_and_detect import Found
from benchmarks.load.http_connection import Answer, Connection, connect
from benchmarks.load.uploads import Upload
from benchmarks.workers import Worker

RAMP = 1.0  # seconds before the measured window, in which queues fill and connections open
DRAIN = 30.0  # seconds after it for answers that are still on the way
PAUSE = 0.02  # seconds that a client of a closed loop waits after a failure, so that it does not spin
CHECKED_EVERY = 16  # one in this many answers is compared with the expected one
PIXELS, SCORE = 0.1, 1e-3  # tolerances of boxes and scores, as between a graph and its PyTorch detector
REFUSED = ("429", "503")
ANSWERED = "200"
IN_A_ROW = 3  # consecutive fast answers that show that a server is back to normal
PATIENCE = 60.0  # seconds beyond load and drain after which the process counts as hung


@dataclass(frozen=True)
class Target:
    """Where images are sent, and the expected answer to each; empty if that is not known."""

    url: str
    uploads: Sequence[Upload]
    expected: Sequence[Found] = ()


@dataclass
class Load:
    """The outcomes of the requests of one load.

    seconds      of the measured window
    rate         answers with detections per second, within the window
    latencies    seconds until each such answer, for requests due in the window
    refusals     seconds until each refusal, for requests due in the window
    outcomes     requests due in the window, counted by status, or by a word where there was no status
    answered     answers with detections, before and after the window too;  cpu_seconds  the clients' own, for those
    back         seconds from the load's end until the server was as fast as before; None if not asked for or not seen
    """

    seconds: float
    rate: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    cpu_seconds: float = 0.0
    back: float | None = None


class Generator:
    """The process that makes the load. Each method raises Failed if that process dies or hangs."""

    def __init__(self) -> None:
        self._worker = Worker(_build)

    def closed(self, target: Target, clients: int, seconds: float) -> Load:
        return self._drive(target, seconds, partial(_closed, clients=clients))

    def open(self, target: Target, rate: float, seconds: float, seed: int, normal: float | None = None) -> Load:
        """`rate` images per second. Then, if `normal` is given, until answers take at most `normal` seconds again."""
        return self._drive(target, seconds, partial(_open, rate=rate, seed=seed, normal=normal))

    def _drive(self, target: Target, seconds: float, loop: Callable[..., Any]) -> Load:
        load: Load = self._worker.ask(target, seconds, loop, seconds=RAMP + seconds + DRAIN + PATIENCE)
        return load

    def close(self) -> None:
        self._worker.close()


class _Clients:
    """The connections of one load, and the outcomes of their requests."""

    def __init__(self, target: Target, seconds: float, first_number: int) -> None:
        address = urlsplit(target.url)
        self._tls = address.scheme == "https"
        self._host, self._port = address.hostname or "", address.port or (443 if self._tls else 80)
        path = (address.path or "/") + (f"?{address.query}" if address.query else "")
        self._heads = [
            f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {upload.size}\r\n\r\n".encode()
            for upload in target.uploads
        ]
        self._target = target
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self.number = first_number
        self.began = time.perf_counter() + RAMP
        self.ends = self.began + seconds
        self.load = Load(seconds)
        self._in_window = 0

    async def send(self, due: float) -> str:
        """Sends the next image, and notes and returns the outcome."""
        number, self.number = self.number, self.number + 1
        which = number % len(self._heads)
        try:
            connection = await self._connection()
            answer = await connection.send(self._heads[which] + self._target.uploads[which].numbered(number))
        except asyncio.CancelledError:
            self._note(due, "unanswered")
            raise
        except OSError:
            outcome = "no connection"
        except ValueError:
            outcome = "not understood"
        else:
            outcome = self._judge(answer, number, which)
            if connection.usable:
                self._idle.append(connection)
            else:
                self._drop(connection)
        self._note(due, outcome)
        return outcome

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
            self._drop(connection)
        connection = await connect(self._host, self._port, self._tls)
        self._all.add(connection)
        return connection

    def _drop(self, connection: Connection) -> None:
        self._all.discard(connection)
        connection.close()

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    def _judge(self, answer: Answer, number: int, which: int) -> str:
        if answer.status != 200:
            return str(answer.status)
        if b'"boxes"' not in answer.body:
            return "without boxes"
        if self._target.expected and number % CHECKED_EVERY == 0:
            return ANSWERED if same(answer.body, self._target.expected[which]) else "wrong"
        return ANSWERED

    def _note(self, due: float, outcome: str) -> None:
        now = time.perf_counter()
        if outcome == ANSWERED:
            self.load.answered += 1
            self._in_window += self.began <= now < self.ends
        if self.began <= due < self.ends:
            self.load.outcomes[outcome] += 1
            if outcome == ANSWERED:
                self.load.latencies.append(now - due)
            elif outcome in REFUSED:
                self.load.refusals.append(now - due)

    def finished(self, cpu_seconds: float) -> Load:
        self.load.rate = self._in_window / self.load.seconds
        self.load.cpu_seconds = cpu_seconds
        return self.load


def same(body: bytes, right: Found) -> bool:
    """Whether an answer has the expected boxes, scores and labels."""
    try:
        answer = orjson.loads(body)
        boxes = np.array(answer["boxes"], float).reshape(-1, 4)
        scores = np.array(answer["scores"], float)
        if answer["labels"] != right.labels or len(boxes) != len(right.boxes) or len(scores) != len(right.scores):
            return False
    except (ValueError, KeyError, TypeError):
        return False
    boxes_off = np.abs(boxes - np.reshape(right.boxes, (-1, 4)))
    return bool((boxes_off <= PIXELS).all() and (np.abs(scores - right.scores) <= SCORE).all())


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the start at which images are due: a Poisson process, the same for the same seed."""
    rng = random.Random(seed)
    moments, moment = [], rng.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += rng.expovariate(rate)
    return moments


def _build() -> Callable[..., Load]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # an open loop may need a connection for every request
    sent = 0

    def drive(target: Target, seconds: float, loop: Callable[..., Any]) -> Load:
        nonlocal sent
        load, sent = asyncio.run(_drive(target, seconds, loop, sent))
        return load

    return drive


async def _drive(target: Target, seconds: float, loop: Callable[..., Any], sent: int) -> tuple[Load, int]:
    spent = time.process_time()
    clients = _Clients(target, seconds, sent)
    try:
        await loop(clients)
    finally:
        clients.close()
    return clients.finished(time.process_time() - spent), clients.number


async def _closed(all_clients: _Clients, clients: int) -> None:
    async def client() -> None:
        while (now := time.perf_counter()) < all_clients.ends:
            if await all_clients.send(now) != ANSWERED:
                await asyncio.sleep(PAUSE)

    await _drain({asyncio.create_task(client()) for _ in range(clients)}, all_clients.ends + DRAIN)


async def _open(clients: _Clients, rate: float, seed: int, normal: float | None) -> None:
    began = clients.began - RAMP
    tasks = set()
    for moment in arrivals(rate, clients.ends - began, seed):
        due = began + moment
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.add(asyncio.create_task(clients.send(due)))
    await asyncio.sleep(max(0.0, clients.ends - time.perf_counter()))
    if normal is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + DRAIN):
                clients.load.back = await _back_to_normal(clients, normal)
    await _drain(tasks, clients.ends + DRAIN)


async def _back_to_normal(clients: _Clients, normal: float) -> float:
    """Seconds from the load's end until the first of IN_A_ROW consecutive answers that took at most `normal`."""
    fast, since = 0, 0.0
    while fast < IN_A_ROW:
        asked = time.perf_counter()
        outcome = await clients.send(asked)
        if outcome == ANSWERED and time.perf_counter() - asked <= normal:
            since = since if fast else asked - clients.ends
            fast += 1
        else:
            fast = 0
            await asyncio.sleep(PAUSE)
    return since


async def _drain(tasks: set[asyncio.Task[Any]], until: float) -> None:
    """Waits for the answers that are still on the way, but not beyond `until`."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=max(0.0, until - time.perf_counter()))
    for task in late:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
