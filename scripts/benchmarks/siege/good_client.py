"""The well-behaved client: one connection, one request at a time, every image another file."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.load import http_connection
from benchmarks.load.load_generator import ANSWERED, IN_A_ROW, PAUSE
from benchmarks.load.turn_figures import Number, percentile
from benchmarks.load.uploads import Upload

PATIENCE = 10.0  # seconds until it gives up on an answer, and opens another connection
LONGEST_TURN = 60.0  # seconds beyond the planned time; the requests that are left then are not sent
DRAIN = 60.0  # seconds to wait until the service is back to normal
NO_TIME = "not sent"


@dataclass
class Served:
    """What became of the requests of one turn: seconds until each answer, and all requests counted by outcome."""

    latencies: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Served") -> None:
        self.latencies += other.latencies
        self.outcomes += other.outcomes

    def percentile(self, rank: float) -> Number:
        return percentile(self.latencies, rank)


class GoodClient:
    """Sends `images` to `url` in turn, at most one request every `every` seconds."""

    def __init__(self, url: str, images: Sequence[Upload], every: float) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._path = (address.path or "/") + (f"?{address.query}" if address.query else "")
        self.images = images
        self._every = every
        self._numbers = itertools.count()
        self._connection: http_connection.Connection | None = None

    def turn(self, requests: int) -> Served:
        return asyncio.run(self._turn(requests))

    def back_to_normal(self, normal: float) -> Number:
        """Seconds until the first of three consecutive answers that take at most `normal` seconds; None if never."""
        return asyncio.run(self._back_to_normal(normal))

    async def _turn(self, requests: int) -> Served:
        served = Served()
        began = time.perf_counter()
        gives_up = began + requests * self._every + LONGEST_TURN
        for number in range(requests):
            if (wait := began + number * self._every - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if time.perf_counter() > gives_up:
                served.outcomes[NO_TIME] += requests - number
                break
            asked = time.perf_counter()
            outcome = await self._send()
            served.outcomes[outcome] += 1
            if outcome == ANSWERED:
                served.latencies.append(time.perf_counter() - asked)
        self._drop()
        return served

    async def _back_to_normal(self, normal: float) -> Number:
        began, fast, since = time.perf_counter(), 0, 0.0
        while fast < IN_A_ROW:
            asked = time.perf_counter()
            if asked - began > DRAIN:
                return None
            if await self._send() == ANSWERED and time.perf_counter() - asked <= normal:
                since = since if fast else asked - began
                fast += 1
            else:
                fast = 0
            await asyncio.sleep(PAUSE)
        self._drop()
        return since

    async def _send(self) -> str:
        number = next(self._numbers)
        image = self.images[number % len(self.images)]
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {image.size}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(PATIENCE):
                if self._connection is None or not self._connection.usable:
                    self._drop()
                    self._connection = await http_connection.connect(self._host, self._port, tls=False)
                answer = await self._connection.send(head.encode() + image.numbered(number))
        except TimeoutError:
            outcome = f"no answer in {PATIENCE:.0f} s"
        except OSError:
            outcome = "connection refused or lost"
        except ValueError:
            outcome = "not understood"
        else:
            return str(answer.status)
        self._drop()
        return outcome

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RuntimeError):
                connection.close()
