"""Which requests the quick parser may have: those that every parser reads alike. And what a connection keeps, and for
how long.
"""

import asyncio
import contextlib
import gc
import logging
import socket
import struct
import threading
import time
import weakref

import h11
import httptools
import pytest
import uvicorn
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request

from service.http import connections
from service.http.connections import Connection, plain_length, when_gone

HEAD = b"POST /detect?label=a%20b HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (HEAD + b"\r\n", 0),
        (HEAD + b"Content-Length: 80123\r\n\r\n", 80123),
        (HEAD + b"content-length:7\r\nX-Request-ID: a\r\n\r\n", 7),
        (b"GET / HTTP/1.1\r\nhost: x\r\nConnection: close\r\n\r\n", 0),
    ],
)
def test_what_ordinary_clients_send_is_plain(head, length):
    assert plain_length(head) == length


@pytest.mark.parametrize(
    "head",
    [
        b"",
        HEAD,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"transfer-encoding:\tchunked\r\nContent-Length: 5\r\n\r\n",
        HEAD + b"Upgrade: h2c\r\n\r\n",
        HEAD + b"Expect: 100-continue\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        HEAD + b"Content-Length: 5, 5\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\n",
        HEAD + b"Content-Length:\r\n\r\n",
        HEAD + b"Content-Length: 9999999999999999\r\n\r\n",
        HEAD + b"Content-Length : 5\r\n\r\n",
        HEAD + b"X: a\r\n folded\r\n\r\n",
        HEAD + b"X: a\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"X: \x00\r\n\r\n",
        HEAD + b"X: \xe4\r\n\r\n",
        HEAD + b"Host: y\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nX: y\r\n\r\n",
        b"POST /detect HTTP/1.0\r\nHost: x\r\n\r\n",
        b"POST http://x/detect HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /detect#a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST  /detect HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PUT /detect HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\nPOST /detect HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_odd_is_not_plain(head):
    assert plain_length(head) is None


class Heard:
    """What httptools makes of a head."""

    def __init__(self, head: bytes) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(head)
        self.method = parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


NAMES = st.sampled_from([b"Host", b"Content-Length", b"Connection", b"Accept", b"Transfer-Encoding", b"X|y", b"Via "])
VALUES = st.sampled_from([b"x", b"12", b"close", b"keep-alive", b" a:b ", b'"', b"\t1\t", b"", b"upgrade", b"\x7f"])
LINES = st.lists(st.tuples(NAMES, VALUES) | st.tuples(st.binary(max_size=3), st.binary(max_size=3)), max_size=4)
TARGETS = st.sampled_from([b"/", b"/detect?a=b", b"//x", b"/%zz", b"/a b", b"/\x80", b"*", b'/"<>^`{|}\\', b"/a?b?c=/"])


@given(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS"]), TARGETS, LINES)
@example(b"GET", b"/", [(b"", b"a")])
@example(b"POST", b'/"<>^`{|}\\', [(b"Content-Length", b"\t1\t"), (b"Connection", b"upgrade")])
def test_a_plain_head_is_read_alike_by_both_parsers(method, target, lines):
    head = (
        method + b" " + target + b" HTTP/1.1\r\nhost: x\r\n" + b"".join(b"%b:%b\r\n" % line for line in lines) + b"\r\n"
    )
    length = plain_length(head)
    if length is None:
        return
    strict = h11.Connection(h11.SERVER)
    strict.receive_data(head)
    request = strict.next_event()
    quick = Heard(head)
    assert quick.complete
    assert isinstance(request, h11.Request)
    assert (quick.method, quick.target) == (request.method, request.target)
    assert [(name, value.strip(b" \t")) for name, value in quick.headers] == list(request.headers)
    assert length == int(dict(quick.headers).get(b"content-length", b"0"))


# What a head has in it to be left to h11, if anything.
both_parsers = pytest.mark.parametrize("kind", [b"", b"Upgrade: h2c\r\n"], ids=["plain", "odd"])
OK = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


@contextlib.contextmanager
def serving(application, keep_alive=75, send_buffer=None):
    """The address of a real server with these connections; `send_buffer` is what the system keeps of an answer."""
    config = uvicorn.Config(
        application, port=0, http=Connection, ws="none", lifespan="off", timeout_keep_alive=keep_alive, log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        listening = server.servers[0].sockets[0]
        if send_buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


class Owner:
    """Whom a request holds, and a connection as long as it holds the request."""

    def cancel(self) -> None:
        pass


def wait_until_none_is_left(owners: list[weakref.ref[Owner]]) -> None:
    deadline = time.monotonic() + 5
    while any(owner() is not None for owner in owners):
        assert time.monotonic() < deadline, [gc.get_referrers(owner()) for owner in owners]
        time.sleep(0.01)
        gc.collect()


async def answer_at_once(scope, receive, send):
    await send(OK)
    await send({"type": "http.response.body", "body": b"ok"})


def answered(connection: socket.socket) -> bytes:
    said = b""
    while not said.endswith(b"ok"):
        received = connection.recv(1000)
        assert received, "closed"
        said += received
    return said


@both_parsers
def test_a_connection_whose_answered_body_comes_late_but_comes_is_kept_as_long_as_any(monkeypatch, kind):
    monkeypatch.setattr(connections, "SECONDS", 0.4)
    body = b"POST / HTTP/1.1\r\nHost: x\r\n" + kind + b"Content-Length: 6\r\n\r\nabc"
    with serving(answer_at_once, keep_alive=2) as address, socket.create_connection(address) as connection:
        connection.settimeout(10)
        for _ in range(2):
            connection.sendall(body)
            answered(connection)
            connection.sendall(b"def")
            time.sleep(2 * connections.SECONDS)
        began = time.monotonic()
        assert connection.recv(1) == b""  # it is idle, and given up at last
        assert time.monotonic() - began > connections.SECONDS


@both_parsers
def test_what_waits_for_the_client_to_go_is_let_go_with_the_answer(kind):
    owners = []

    async def application(scope, receive, send):
        owner = Owner()
        owners.append(weakref.ref(owner))
        when_gone(Request(scope, receive), owner.cancel)
        await answer_at_once(scope, receive, send)

    with serving(application) as address, socket.create_connection(address) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + kind + b"\r\n")
        answered(connection)
        wait_until_none_is_left(owners)


@both_parsers
def test_what_waits_for_the_client_to_go_is_called_once_when_it_goes(kind):
    called, called_late = [], []

    async def application(scope, receive, send):
        request, gone = Request(scope, receive), asyncio.Event()

        def note() -> None:
            called.append(None)
            gone.set()

        when_gone(request, note)
        await gone.wait()
        when_gone(request, lambda: called_late.append(None))

    with serving(application) as address:
        with socket.create_connection(address) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + kind + b"\r\n")
            time.sleep(0.1)
        deadline = time.monotonic() + 5
        while not called_late:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert (len(called), len(called_late)) == (1, 1)


@both_parsers
def test_a_connection_that_is_reset_leaves_nothing_behind(kind):
    owners = []

    async def application(scope, receive, send):
        owner = scope["state"]["owner"] = Owner()
        owners.append(weakref.ref(owner))
        await answer_at_once(scope, receive, send)

    with serving(application) as address:
        for _ in range(3):
            with socket.create_connection(address) as connection:
                connection.settimeout(10)
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + kind + b"\r\n")
                answered(connection)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets
        wait_until_none_is_left(owners)


@pytest.mark.parametrize("lingers", [False, True])
def test_a_malformed_chunk_behind_an_answer_closes_the_connection_without_a_word(caplog, lingers):
    async def application(scope, receive, send):
        await send(OK)
        await send({"type": "http.response.body", "body": b"ok", "more_body": lingers})
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(application) as address, socket.create_connection(address) as connection:
        connection.settimeout(10)
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
        answered(connection)
        connection.sendall(b"zz\r\nxx\r\n")
        assert connection.recv(1000) == b""
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_an_answer_at_the_time_of_a_malformed_chunk_is_dropped(caplog):
    async def application(scope, receive, send):
        await receive()
        await answer_at_once(scope, receive, send)

    with serving(application) as address, socket.create_connection(address) as connection:
        connection.settimeout(10)
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n")
        said = b""
        while received := connection.recv(1000):
            said += received
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


closes = pytest.mark.parametrize("end", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])


@contextlib.contextmanager
def asked_for(size, owners, kind):
    """A client that has asked for an answer of `size` bytes, with hardly room for them in either system's buffers."""

    async def application(scope, receive, send):
        owner = scope["state"]["owner"] = Owner()
        owners.append(weakref.ref(owner))
        await send({**OK, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size)})

    with serving(application, keep_alive=1, send_buffer=4096) as address, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(address)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + kind + b"\r\n")
        yield connection


@both_parsers
@closes
@pytest.mark.parametrize("size", [40_000, 2_000_000], ids=["below the high-water mark", "above it"])
def test_an_answer_that_nobody_reads_is_not_kept(monkeypatch, kind, end, size):
    monkeypatch.setattr(connections, "SECONDS_TO_TAKE", 0.4)
    owners: list[weakref.ref[Owner]] = []
    with asked_for(size, owners, kind + end) as connection:
        assert connection.recv(1)
        wait_until_none_is_left(owners)


@both_parsers
def test_an_answer_that_nobody_reads_is_not_kept_for_a_client_that_has_closed_its_own_side(monkeypatch, kind):
    monkeypatch.setattr(connections, "SECONDS_TO_TAKE", 0.4)
    owners: list[weakref.ref[Owner]] = []
    with asked_for(40_000, owners, kind) as connection:
        assert connection.recv(1)
        connection.shutdown(socket.SHUT_WR)
        wait_until_none_is_left(owners)


@both_parsers
@closes
def test_a_client_that_reads_slowly_gets_its_whole_answer(monkeypatch, kind, end):
    monkeypatch.setattr(connections, "SECONDS_TO_TAKE", 0.4)
    size = 150_000
    with asked_for(size, [], kind + end) as connection:
        said = b""
        while not said.endswith(bytes(size)):
            received = connection.recv(5000)
            assert received, "closed"
            said += received
            time.sleep(0.05)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_is_written_when_the_transport_has_gone_raises_nowhere(loop):
    faults = []

    async def write() -> None:
        running = asyncio.get_running_loop()
        running.set_exception_handler(lambda _, context: faults.append(context))
        server = await running.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, _ = await running.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        joining = connections._Outgoing(transport, running)
        joining.write(b"a head that waits for its body")
        transport.abort()
        await asyncio.sleep(0.05)
        for _ in range(3):
            joining.write(b"more")
        joining.write(b"and a head")
        await asyncio.sleep(0.05)
        joining.close()
        server.close()

    policy = pytest.importorskip(loop)
    with asyncio.Runner(loop_factory=policy.new_event_loop) as runner:
        runner.run(write())
    assert faults == []
