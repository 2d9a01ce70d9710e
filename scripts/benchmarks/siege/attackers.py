"""Hostile clients, all in one process of their own, each at little cost.

The clients of one kind start together and go on until they are told to stop. They count what the service does to them.
A client whose connection is refused, answered or cut waits for `REOPEN` seconds and then opens another one.
"""

import asyncio
import contextlib
import itertools
import random
import resource
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import NamedTuple

from benchmarks.workers import CONTEXT, Failed

RAMP = 2.0  # seconds over which the clients begin
SETTLE = 1.0  # seconds from then until the measurement beside them begins
BYTE_EVERY = 1.0  # seconds between two bytes of a slow sender; others look as often whether they were cut
TAKE, TAKE_EVERY = 4096, 5.0  # bytes that a slow reader takes, and seconds between
RECEIVE_BUFFER = 4096  # bytes; for clients that read slowly, or nothing
REOPEN = 1.0  # seconds
GARBAGE_EVERY = 0.25  # seconds
PIPELINED = 5000  # requests at once, 230 kB
PATIENCE = 60.0  # seconds for the process to report

BODY = 100_000  # bytes that a slow upload announces


class Images(NamedTuple):
    """What hostile clients upload.  small: for one good request;  large: costs much to run, and more to draw."""

    small: bytes
    large: bytes


class Attack(NamedTuple):
    """kind: one of KINDS;  clients: their number;  host, port: of the service.

    addresses: the number of source addresses, 127.1.0.1 and so on, that the clients use in turn; 0 if they have the
    well-behaved client's address.
    """

    kind: str
    clients: int
    host: str
    port: int
    images: Images
    addresses: int = 0


@dataclass
class Suffered:
    """What became of the hostile clients.

    opened       connections
    refused      attempts to connect that failed
    cut          connections that the service closed without an answer
    answers      by status
    cpu_seconds  of the process
    """

    opened: int = 0
    refused: int = 0
    cut: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    cpu_seconds: float = 0.0


class Attackers:
    """The process of the hostile clients. They have all begun when the constructor returns.

    Raises Failed if the process dies.
    """

    def __init__(self, attack: Attack) -> None:
        self._pipe, there = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(there, attack), daemon=True)
        self._process.start()
        there.close()
        self._receive()

    def stop(self) -> Suffered:
        """Closes all connections. Returns what became of them."""
        self._pipe.send("stop")
        suffered = self._receive()
        assert isinstance(suffered, Suffered)
        return suffered

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _receive(self) -> object:
        try:
            if self._pipe.poll(PATIENCE):
                return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise Failed("the process of the hostile clients has ended") from error
        raise Failed(f"the process of the hostile clients has not reported for {PATIENCE:.0f} s")


def _serve(pipe: Connection, attack: Attack) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if attack.clients + 100 > hard != resource.RLIM_INFINITY:
        raise SystemExit(f"{attack.clients} clients need more than the {hard} file descriptors that ulimit -Hn allows")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_attack(pipe, attack))


async def _attack(pipe: Connection, attack: Attack) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_reader(pipe.fileno(), stop.set)  # the word "stop", or the end of the parent process
    crowd = Crowd(attack)
    behave = KINDS[attack.kind]
    tasks = [asyncio.create_task(_begin(crowd, behave, n)) for n in range(attack.clients)]
    await asyncio.sleep(RAMP + SETTLE)
    spent = time.process_time()
    pipe.send("begun")
    await stop.wait()
    crowd.suffered.cpu_seconds = time.process_time() - spent
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(BrokenPipeError):
        pipe.send(crowd.suffered)


async def _begin(crowd: "Crowd", behave: "Behaviour", number: int) -> None:
    await asyncio.sleep(RAMP * number / crowd.attack.clients)
    while True:
        with contextlib.suppress(OSError):
            await behave(crowd)
        await asyncio.sleep(REOPEN)


class Crowd:
    """The clients of one attack."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.suffered = Suffered()
        self._numbers = itertools.count(random.getrandbits(40))

    @contextlib.asynccontextmanager
    async def connect(self, receive_buffer: int | None = None) -> AsyncIterator[socket.socket]:
        """A connection. Raises OSError if the service refuses it."""
        with socket.socket() as connection:
            connection.setblocking(False)
            if receive_buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if self.attack.addresses:
                n = 1 + next(self._numbers) % self.attack.addresses
                connection.bind((f"127.1.{n // 256}.{n % 256}", 0))
            try:
                address = self.attack.host, self.attack.port
                await asyncio.get_running_loop().sock_connect(connection, address)
            except OSError:
                self.suffered.refused += 1
                raise
            self.suffered.opened += 1
            yield connection

    def distinct(self, image: bytes) -> bytes:
        """The same image in other bytes, because the service computes identical uploads once."""
        return image + b"\0%d" % next(self._numbers)

    def is_open(self, connection: socket.socket) -> bool:
        """Whether the service has neither answered nor cut the connection. Counts what it did."""
        try:
            received = connection.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            received = b""
        self.count(received)
        return False

    def count(self, received: bytes) -> None:
        """Counts an answer by its status; no bytes mean that the connection was cut."""
        if not received:
            self.suffered.cut += 1
        elif received.startswith(b"HTTP/1."):
            self.suffered.answers[received[9:12].decode(errors="replace")] += 1
        else:
            self.suffered.answers["not HTTP"] += 1


Behaviour = Callable[[Crowd], Awaitable[None]]  # what a client does with one connection


def _head(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: siege", "Content-Type: image/jpeg", *headers, "", "")).encode()


def _upload(crowd: Crowd, image: bytes, *headers: str) -> bytes:
    image = crowd.distinct(image)
    return _head("/detect", f"Content-Length: {len(image)}", *headers) + image


async def _drip(crowd: Crowd, first: bytes, pieces: Iterator[bytes]) -> None:
    """Sends `first`, then one piece a second until the service answers or closes the connection."""
    async with crowd.connect() as connection:
        if first:
            connection.send(first)
        while crowd.is_open(connection):
            await asyncio.sleep(BYTE_EVERY)
            if piece := next(pieces):
                with contextlib.suppress(BlockingIOError):
                    connection.send(piece)


async def slow_head(crowd: Crowd) -> None:
    head = b"POST /detect HTTP/1.1\r\nHost: siege\r\nX-Slow: " + b"a" * 10_000
    await _drip(crowd, b"", (head[i : i + 1] for i in itertools.count()))


async def slow_body(crowd: Crowd) -> None:
    await _drip(crowd, _head("/detect", f"Content-Length: {BODY}"), itertools.repeat(b"x"))


async def half_body(crowd: Crowd) -> None:
    """Sends half of the body at once."""
    await _drip(crowd, _head("/detect", f"Content-Length: {BODY}") + bytes(BODY // 2), itertools.repeat(b"x"))


async def slow_chunks(crowd: Crowd) -> None:
    await _drip(crowd, _head("/detect", "Transfer-Encoding: chunked"), itertools.repeat(b"1\r\nx\r\n"))


async def idle(crowd: Crowd) -> None:
    await _drip(crowd, b"", itertools.repeat(b""))


async def idle_keepalive(crowd: Crowd) -> None:
    """One good request, then silence."""
    async with crowd.connect() as connection:
        connection.send(b"GET /healthz HTTP/1.1\r\nHost: siege\r\n\r\n")
        received = await asyncio.get_running_loop().sock_recv(connection, 65536)
        crowd.count(received)
        while received and crowd.is_open(connection):
            await asyncio.sleep(BYTE_EVERY)


async def slow_reader(crowd: Crowd) -> None:
    """Asks for a drawn image, and takes 4 kB of it every 5 s."""
    loop = asyncio.get_running_loop()
    async with crowd.connect(RECEIVE_BUFFER) as connection:
        await loop.sock_sendall(connection, _upload(crowd, crowd.attack.images.large, "Accept: image/png"))
        first = True
        while True:
            received = await loop.sock_recv(connection, TAKE)
            if first or not received:
                crowd.count(received)
            if not received or (first and not received.startswith(b"HTTP/1.1 200")):
                return
            first = False
            await asyncio.sleep(TAKE_EVERY)


async def never_reads(crowd: Crowd) -> None:
    """Pipelines requests for as long as the service takes them, and reads nothing."""
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: siege\r\n\r\n" * PIPELINED
    async with crowd.connect(RECEIVE_BUFFER) as connection:
        try:
            while True:
                with contextlib.suppress(BlockingIOError):
                    connection.send(requests)  # a part of a request may be sent twice, which is as hostile
                await asyncio.sleep(BYTE_EVERY)
        except OSError:
            crowd.count(b"")
            raise


async def greedy(crowd: Crowd) -> None:
    """Sends one large image after another, as fast as they are answered."""
    loop = asyncio.get_running_loop()
    async with crowd.connect() as connection:
        while True:
            await loop.sock_sendall(connection, _upload(crowd, crowd.attack.images.large))
            received = await loop.sock_recv(connection, 65536)
            crowd.count(received)
            if not received.startswith(b"HTTP/1.1 200"):
                return


async def garbage(crowd: Crowd) -> None:
    """Sends what is not HTTP, and more of it after every refusal."""
    loop = asyncio.get_running_loop()
    for data in itertools.cycle(GARBAGE):
        with contextlib.suppress(ConnectionError):
            async with crowd.connect() as connection:
                await loop.sock_sendall(connection, data)
                received = await loop.sock_recv(connection, 65536)
                crowd.count(received)
        await asyncio.sleep(GARBAGE_EVERY)


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),  # the beginning of a TLS hello
    b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST /detect HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"\0\0\0\0\r\n\r\n",
    b"GET /healthz HTTP/9.9\r\nHost: a\r\n\r\n",
)

KINDS: dict[str, Behaviour] = {
    "slow-head": slow_head,
    "slow-body": slow_body,
    "half-body": half_body,
    "slow-chunks": slow_chunks,
    "slow-reader": slow_reader,
    "idle": idle,
    "idle-keepalive": idle_keepalive,
    "never-reads": never_reads,
    "greedy": greedy,
    "garbage": garbage,
}
FEW = 64
FEW_OF = ("greedy", "garbage")  # of these kinds FEW clients are enough; more would only use up the processor
