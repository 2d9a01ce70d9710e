"""Connections on a real server: deadlines, disconnects, tiny chunks, and objects that must be released.

The deadlines are shortened for the tests. `SOON` only limits how long a test waits; the server does not know it.
"""

import asyncio
import contextlib
import gc
import json
import logging
import re
import socket
import struct
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import uvicorn
from starlette.requests import Request

from service.http.connections import (
    CHUNKED_SLICE,
    CONNECTION,
    FREE_FRAMING,
    UNTIL_SENT,
    Connection,
    body_size,
    when_gone,
)
from service.http.deadlines import Deadlines
from service.http.http1 import Http1
from service.http.outgoing import Outgoing
from service.http.problems import Problem
from service.http.refusals import MAX_HEAD
from service.http.traffic import Limits, Traffic
from service.queue.memory import MemoryBudget
from service.telemetry.metrics import Metrics

SOON = 20  # seconds

# After a request that offers another protocol, h11 reads nothing until the response is sent.
kinds = pytest.mark.parametrize("kind", [b"", b"Upgrade: h2c\r\n"], ids=["plain", "upgrade"])
OK = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


@contextlib.contextmanager
def serving(application, keep_alive=75, send_buffer=None, traffic=None, **deadlines):
    """The address of a real server with these connections. `send_buffer` sets the size of the system's buffer."""
    config = uvicorn.Config(
        Http1(application),
        http=partial(Connection, traffic or Traffic(Limits(), Metrics(), MemoryBudget(), Deadlines(**deadlines))),
        ws="none",
        lifespan="off",
        timeout_keep_alive=keep_alive,
        log_config=None,
    )
    listening = socket.create_server(("127.0.0.1", 0))
    if send_buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join(SOON)
        assert not thread.is_alive()


@contextlib.contextmanager
def connected(address):
    with socket.create_connection(address) as connection:
        connection.settimeout(SOON)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


class Owner:
    """An object that a request refers to. It stays in memory as long as a connection refers to the request."""

    def cancel(self) -> None:
        pass


def wait_until_all_are_released(owners: list[weakref.ref[Owner]]) -> None:
    deadline = time.monotonic() + SOON
    while any(owner() is not None for owner in owners):
        assert time.monotonic() < deadline, [gc.get_referrers(owner()) for owner in owners]
        time.sleep(0.01)
        gc.collect()


def wait_until(condition) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def answer_at_once(scope, receive, send):
    await send(OK)
    await send({"type": "http.response.body", "body": b"ok"})


async def read_all(scope, receive, send):
    """Answers with the length of the body in the header x-body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message["body"])
        more = message["more_body"]
    await send({**OK, "headers": [*OK["headers"], (b"x-body", b"%d" % size)]})
    await send({"type": "http.response.body", "body": b"ok"})


def answered(connection: socket.socket) -> bytes:
    """Reads a response up to its end, "ok"."""
    received = b""
    while not received.endswith(b"ok"):
        more = connection.recv(1000)
        assert more, "closed"
        received += more
    return received


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            received += more
    return received


@kinds
def test_a_connection_whose_body_arrives_after_the_answer_is_idle_from_then_on(kind):
    body = b"POST / HTTP/1.1\r\nHost: x\r\n" + kind + b"Content-Length: 6\r\n\r\nabc"
    with serving(answer_at_once, keep_alive=2, read=1.0) as address, connected(address) as connection:
        for _ in range(2):
            connection.sendall(body)
            answered(connection)
            connection.sendall(b"def")
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - began > 1.5  # closed as idle after 2 s, and not by the deadline of 1 s


BEGINNINGS = {
    b"": [],
    b"GET /hea": [],
    b"POST / HTTP/1.1\r\nHost: x\r\n": [],
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /hea": [b"200"],
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\nGET /hea": [b"200"],
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nabc": [b"200"],  # answered before the body arrives
    b"POST / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nContent-Length: 9999\r\n\r\nabc": [b"200"],
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n": [b"200"],
}


def test_a_client_that_stops_sending_is_disconnected():
    def statuses(beginning: bytes) -> list[bytes]:
        with connected(address) as connection:
            connection.sendall(beginning)
            return re.findall(rb"HTTP/1.1 (\d+)", until_closed(connection))

    with serving(answer_at_once, read=0.3) as address, ThreadPoolExecutor(len(BEGINNINGS)) as pool:
        assert list(pool.map(statuses, BEGINNINGS)) == list(BEGINNINGS.values())


# Each head is followed by five bytes and a second request. The values are the statuses of the responses.
HEADS = {
    b"Content-Length: 5\r\n": [b"200", b"200"],
    b"content-length:5\r\nX-Request-ID: a\r\n": [b"200", b"200"],
    b"Content-Length: 5\r\nContent-Length: 5\r\n": [b"200", b"200"],  # equal values count as one: RFC 9112, section 6.3
    b"Content-Length: 5, 5\r\n": [b"200", b"200"],
    b"Content-Length: 5\r\nContent-Length: 6\r\n": [b"400"],
    b"Content-Length: -5\r\n": [b"400"],
    b"Content-Length: +5\r\n": [b"400"],
    b"Content-Length:\r\n": [b"400"],
    b"Content-Length : 5\r\n": [b"400"],
    b"Content-Length: 99999999999999999999999\r\n": [b"400"],
    b"Transfer-Encoding: gzip\r\n": [b"400"],
    b"Transfer-Encoding: chunked, identity\r\n": [b"400"],
    b"X: a\nTransfer-Encoding: chunked\r\n": [b"400"],
    b"X: \x00\r\n": [b"400"],
    b"Host: y\r\n": [b"400"],
}


@pytest.mark.parametrize("head", HEADS)
def test_a_request_whose_body_length_is_ambiguous_is_refused(head):
    with serving(read_all) as address, connected(address) as connection:
        request = b"POST / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n"
        connection.sendall(request + b"abcde" + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+)", until_closed(connection)) == HEADS[head]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"POST / HTTP/1.1\r\nX: y\r\n\r\n", "bad_host"),
        (b"POST  / HTTP/1.1\r\nHost: x\r\n\r\n", "bad_head"),
        (b"\r\nPOST / HTTP/1.1\r\nHost: x\r\n\r\n", "bad_head"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "tls"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "bad_chunk"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcdeGET / HTTP/1.1\r\n\r\n", "bad_host"),
    ],
)
def test_bytes_that_are_not_valid_http_get_a_problem_document_at_once(sent, reason, caplog):
    traffic = Traffic(Limits(), Metrics(), MemoryBudget())
    with serving(read_all, traffic=traffic) as address, connected(address) as connection:
        connection.sendall(sent)
        *_, head, body = until_closed(connection).split(b"\r\n\r\n")
    assert head.removeprefix(b"ok").startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json")
    assert json.loads(body)["reason"] == reason
    assert traffic.metrics.registry.get_sample_value("detector_rejected_total", {"reason": reason}) == 1
    [record] = [record for record in caplog.records if record.name == "service.http.traffic"]
    assert record.levelno == logging.WARNING


@pytest.mark.parametrize("piece", [1000, 40_000])
def test_the_limit_of_a_head_does_not_depend_on_how_it_arrives(piece):
    for size, status in ((MAX_HEAD, b"200"), (MAX_HEAD + 1, b"431")):
        start, end = b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"\r\n\r\n"
        head = start + b"y" * (size - len(start) - len(end)) + end
        with serving(answer_at_once) as address, connected(address) as connection:
            for begin in range(0, size, piece):
                connection.sendall(head[begin : begin + piece])
            assert connection.recv(12) == b"HTTP/1.1 " + status


UPLOAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


def test_while_all_places_for_uploads_are_taken_a_new_one_is_held_back_until_its_body_is_here():
    traffic = Traffic(Limits(max_uploads=1), Metrics(), MemoryBudget())
    begun = []

    async def application(scope, receive, send):
        begun.append(scope)
        async with asyncio.timeout(SOON) as timer:
            with traffic.uploads.one("client", body_size(Request(scope)), timer):
                await read_all(scope, receive, send)

    with (
        serving(application, traffic=traffic) as address,
        connected(address) as first,
        connected(address) as second,
        connected(address) as third,
    ):
        first.sendall(UPLOAD + b"a")
        wait_until(lambda: len(begun) == 1)
        second.sendall(UPLOAD + b"a")
        wait_until(lambda: len(traffic.uploads) == 2)
        third.sendall(UPLOAD + b"abcde")
        answered(third)
        assert len(begun) == 2  # the second upload does not occupy the application
        assert traffic.uploads.bytes == 2
        first.sendall(b"bcde")
        answered(first)
        wait_until(lambda: len(begun) == 3)
        second.sendall(b"bcde")
        answered(second)
        assert (len(traffic.uploads), traffic.uploads.bytes) == (0, 0)


def test_a_chunked_upload_is_held_back_until_its_last_chunk():
    traffic = Traffic(Limits(max_uploads=0), Metrics(), MemoryBudget())
    with serving(read_all, traffic=traffic) as address, connected(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nX-Zero: 0\r\n\r\n")
        wait_until(lambda: len(traffic.uploads) == 1)
        connection.sendall(b"5\r\nabcde\r\n")
        wait_until(lambda: traffic.uploads.bytes == 10)  # it is still held back
        connection.sendall(b"0\r\n\r\n")
        assert b"\r\nx-body: 5\r\n" in answered(connection)


def test_a_head_that_ends_like_a_last_chunk_is_held_back():
    traffic = Traffic(Limits(max_uploads=0), Metrics(), MemoryBudget())
    with serving(read_all, traffic=traffic) as address, connected(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        wait_until(lambda: len(traffic.uploads) == 1)
        connection.sendall(b"abcde")
        wait_until(lambda: traffic.uploads.bytes == 5)
        connection.sendall(b"fghij")
        assert b"\r\nx-body: 10\r\n" in answered(connection)


def test_an_upload_that_is_held_back_has_a_deadline():
    traffic = Traffic(Limits(max_uploads=0), Metrics(), MemoryBudget(), Deadlines(body=0.3))
    with serving(answer_at_once, traffic=traffic) as address, connected(address) as connection:
        connection.sendall(UPLOAD + b"a")
        assert until_closed(connection).startswith(b"HTTP/1.1 408 ")
    assert (len(traffic.uploads), traffic.uploads.bytes) == (0, 0)


@pytest.mark.contract("3.10")
def test_a_long_response_is_in_progress_until_its_client_has_read_it_or_is_dropped():
    traffic = Traffic(Limits(), Metrics(), MemoryBudget())
    freed = threading.Event()
    size = 20_000_000

    async def application(scope, receive, send):
        with contextlib.ExitStack() as stack:
            scope["state"][UNTIL_SENT] = stack
            stack.callback(freed.set)
            await send({**OK, "headers": [(b"content-length", b"%d" % size)]})
            await send({"type": "http.response.body", "body": bytes(size)})

    with serving(application, traffic=traffic) as address:
        with connected(address) as reader:
            reader.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: traffic.responses.bytes > 0)
            assert not freed.is_set()
            head = reader.recv(1000).partition(b"\r\n\r\n")
            left = size - len(head[2])
            while left:
                left -= len(reader.recv(2**20))
            assert freed.wait(SOON)
            wait_until(lambda: len(traffic.responses) == 0)
        freed.clear()
        with connected(address) as other:
            other.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: traffic.responses.drop_slowest())  # once it has had its time
            assert freed.is_set()  # at once
            assert len(until_closed(other)) < size
    labels = {"reason": "evicted_reader"}
    assert traffic.metrics.registry.get_sample_value("detector_connections_closed_total", labels) == 1


def test_a_trickle_of_tiny_chunks_is_refused_and_the_client_can_read_the_answer():
    """A chunk of one byte takes 6 bytes, 5 of them framing: FREE_FRAMING + 6/32 n < 5 n once n > 2,493."""
    received = 0
    reasons = []

    async def application(scope, receive, send):
        async def read_until_refused():
            nonlocal received
            while True:
                received += len((await receive())["body"])

        with pytest.raises(Problem) as refused:
            await read_until_refused()
        reasons.append(refused.value.reason)
        await answer_at_once(scope, receive, send)

    with serving(application) as address, connected(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"1\r\na\r\n" * 100_000)
        assert b"\r\nconnection: close\r\n" in answered(connection)
        with contextlib.suppress(ConnectionError):  # the server closes the connection although the client keeps sending
            while True:
                connection.sendall(b"1\r\na\r\n" * 1000)
    assert reasons == ["tiny_chunks"]
    # What arrives together with the refusal is not counted, so there is no lower bound. See ordinary chunks below.
    assert received < FREE_FRAMING / (5 - 6 / 32) + CHUNKED_SLICE / 6


def test_tiny_chunks_that_the_application_does_not_read_are_discarded():
    """The rest of a body is only read so that the client can receive the response."""
    with serving(answer_at_once) as address, connected(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        answered(connection)
        with pytest.raises(ConnectionError):  # because the service closes the connection
            send_tiny_chunks(connection, until=time.monotonic() + 60)


def send_tiny_chunks(connection: socket.socket, until: float) -> None:
    while time.monotonic() < until:
        connection.sendall(b"1\r\na\r\n" * 1000)


@pytest.mark.parametrize("chunk", [1, 64, 10_000])
def test_ordinary_chunks_are_accepted(chunk):
    """2,000 chunks of one byte use less framing than the free 12,000 bytes; larger chunks are not limited."""
    count = 2000 if chunk == 1 else 500_000 // chunk
    chunks = (b"%x\r\n" % chunk + b"a" * chunk + b"\r\n") * count + b"0\r\n\r\n"
    with serving(read_all) as address, connected(address) as connection:
        for _ in range(2):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
            assert b"\r\nx-body: %d\r\n" % (chunk * count) in answered(connection)


def test_a_body_in_many_segments_wakes_the_application_once():
    sizes = []

    async def application(scope, receive, send):
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await answer_at_once(scope, receive, send)

    with serving(application) as address, connected(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n")
        for _ in range(20):
            connection.sendall(bytes(1000))
        answered(connection)
    assert sizes == [20_000]


@kinds
def test_the_callback_for_a_disconnect_is_released_after_the_response(kind):
    owners = []

    async def application(scope, receive, send):
        owner = Owner()
        owners.append(weakref.ref(owner))
        when_gone(Request(scope, receive), owner.cancel)
        await answer_at_once(scope, receive, send)

    with serving(application) as address, connected(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + kind + b"\r\n")
        answered(connection)
        wait_until_all_are_released(owners)


@kinds
def test_each_callback_for_a_disconnect_is_called_once(kind):
    called = []
    waits, done = threading.Event(), threading.Event()

    async def application(scope, receive, send):
        request, gone = Request(scope, receive), asyncio.Event()

        def note() -> None:
            called.append("while the request waits")
            gone.set()

        when_gone(request, note)
        waits.set()
        await gone.wait()
        when_gone(request, lambda: called.append("at once"))
        done.set()

    with serving(application) as address:
        with connected(address) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + kind + b"\r\n")
            assert waits.wait(SOON)
        assert done.wait(SOON)
    assert called == ["while the request waits", "at once"]


def test_under_another_server_the_callback_for_a_disconnect_is_never_called():
    when_gone(Request({"type": "http", "state": {}}), lambda: pytest.fail("the client has not disconnected"))


@kinds
def test_a_connection_that_is_reset_leaves_no_objects_in_memory(kind):
    owners = []

    async def application(scope, receive, send):
        owner = scope["state"]["owner"] = Owner()
        owners.append(weakref.ref(owner))
        await answer_at_once(scope, receive, send)

    with serving(application) as address:
        for _ in range(3):
            with connected(address) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + kind + b"\r\n")
                answered(connection)
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )  # makes close() send a reset
        wait_until_all_are_released(owners)


@pytest.mark.parametrize("lingers", [False, True])
def test_a_malformed_chunk_after_the_response_closes_the_connection_silently(caplog, lingers):
    async def application(scope, receive, send):
        await send(OK)
        await send({"type": "http.response.body", "body": b"ok", "more_body": lingers})
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(application) as address, connected(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
        answered(connection)
        connection.sendall(b"zz\r\nxx\r\n")
        assert connection.recv(1000) == b""
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_no_response_follows_the_400_for_a_malformed_chunk(caplog):
    async def application(scope, receive, send):
        await receive()
        await answer_at_once(scope, receive, send)

    with serving(application) as address, connected(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n")
        received = until_closed(connection)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_body_is_not_asked_for_after_it_was_refused(caplog):
    async def application(scope, receive, send):
        while not scope["state"][CONNECTION].gone:
            await asyncio.sleep(0.01)
        await answer_at_once(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(application) as address, connected(address) as connection:
        connection.sendall(head + b"zz\r\n")
        received = until_closed(connection)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_connection_that_rests_keeps_nothing_of_its_last_request_and_serves_the_next():
    traffic = Traffic(Limits(), Metrics(), MemoryBudget(), Deadlines(read=1.0, idle=60.0))
    idle_seconds = iter([0.5, 0.5, 58.5])  # as if the connection had been idle for so long
    owners = []

    async def application(scope, receive, send):
        owner = scope["owner"] = Owner()  # kept by whatever keeps the request
        owners.append(weakref.ref(owner))
        connection = scope["state"][CONNECTION]
        asyncio.get_running_loop().call_later(0.2, connection.rest, next(idle_seconds))
        await answer_at_once(scope, receive, send)

    with serving(application, traffic=traffic) as address, connected(address) as connection:
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answered(connection)
            wait_until_all_are_released(owners)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        began = time.monotonic()
        answered(connection)
        assert connection.recv(1) == b""
        assert time.monotonic() - began > 1.2  # closed as idle after 60 - 58.5 s, and not by the deadline of 1 s


closes = pytest.mark.parametrize("end", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])


@contextlib.contextmanager
def asked_for(size, owners, kind, write):
    """A client that has asked for a response of `size` bytes, for which both systems' buffers are too small."""

    async def application(scope, receive, send):
        owner = scope["state"]["owner"] = Owner()
        owners.append(weakref.ref(owner))
        await send({**OK, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size)})

    with serving(application, keep_alive=1, send_buffer=4096, write=write) as address, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SOON)
        connection.connect(address)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + kind + b"\r\n")
        yield connection


@kinds
@closes
@pytest.mark.parametrize("size", [40_000, 2_000_000], ids=["below the high-water mark", "above it"])
def test_a_response_that_the_client_does_not_read_is_dropped(kind, end, size):
    owners: list[weakref.ref[Owner]] = []
    with asked_for(size, owners, kind + end, write=0.4) as connection:
        assert connection.recv(1)
        wait_until_all_are_released(owners)


@kinds
def test_an_unread_response_is_also_dropped_if_the_client_has_closed_its_sending_side(kind):
    owners: list[weakref.ref[Owner]] = []
    with asked_for(40_000, owners, kind, write=0.4) as connection:
        assert connection.recv(1)
        connection.shutdown(socket.SHUT_WR)
        wait_until_all_are_released(owners)


@kinds
@closes
def test_a_client_that_reads_slowly_gets_its_whole_response(kind, end):
    """150,000 bytes at 4,000 every 60 ms take 2.25 s, which is longer than the deadline for progress."""
    size = 150_000
    with asked_for(size, [], kind + end, write=1.5) as connection:
        received = b""
        while not received.endswith(bytes(size)):
            more = connection.recv(4000)
            assert more, "closed"
            received += more
            time.sleep(0.06)  # the speed at which the client reads


class Other(asyncio.Protocol):
    """The far end of a connection."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_writing_to_a_lost_connection_does_nothing(loop):
    faults = []

    async def write() -> None:
        running = asyncio.get_running_loop()
        running.set_exception_handler(lambda _, context: faults.append(context))
        server = await running.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, client = await running.create_connection(Other, *server.sockets[0].getsockname())
        outgoing = Outgoing(transport, running, Deadlines(), lambda _: None, lambda: None)
        outgoing.write(b"a head that waits for its body")
        transport.abort()
        await client.lost.wait()
        for _ in range(3):
            outgoing.write(b"more")
        outgoing.write(b"and a head")
        flushed = asyncio.Event()
        running.call_soon(flushed.set)  # runs after the flush that `write` has scheduled
        await flushed.wait()
        outgoing.close()
        server.close()

    policy = pytest.importorskip(loop)
    with asyncio.Runner(loop_factory=policy.new_event_loop) as runner:
        runner.run(write())
    assert faults == []
