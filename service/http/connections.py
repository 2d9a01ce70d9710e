"""Connections that are patient, but not for ever; and that spend little on a plain request.

uvicorn waits without end for a request's head, for the rest of a body that has been answered already, and for a client
to read its answer. Both of its protocols get a deadline for these here.

A connection begins with httptools (llhttp): a request takes 0.34 ms of the event loop's thread, where it takes 0.46 ms
with h11. It has only requests that no two parsers read differently: a head of printable lines, whole in one piece, with
at most a Content-Length. Everything else, from the first byte that is not so plain, is left to h11, which is right
about every odd client, for the rest of that connection.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from typing import Any

import h11
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ

SECONDS = 10.0  # for a head from its first byte (or from connecting), and for the rest of a body that was answered
# For the client to take any more of its answer. The system tells what was taken in steps, of up to a sixteenth of the
# client's buffer: 16 s apart at 4 kB/s.
SECONDS_TO_TAKE = 60.0
CHUNK = 32  # average bytes that the chunks of a body must have, after the first FREE_CHUNKS
FREE_CHUNKS = 2000
LONGEST_PLAIN_HEAD = 8192  # of what h11 takes, half
BODY_PIECE = 2**18  # bytes of a body that are worth waking a handler for, before its end

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_PLAIN_HEAD = re.compile(
    rb"(?:GET|HEAD|POST) /[!\"$-~]* HTTP/1\.1\r\n(?:" + _TOKEN + rb"+:[\t -~]*\r\n)+\r\n"  # no fragment in the target
)
_ODD_HEADER = re.compile(rb"\r\n(?:transfer-encoding|upgrade|http2-settings|expect|trailer|te):")
_LENGTH = re.compile(rb"\r\ncontent-length:[\t ]*([0-9]{1,15})[\t ]*\r\n")
_WHOLE_URL = re.compile(rb"(?i:https?)://(?:[^/?#]*@)?(?P<authority>[^/?#@]+)(?P<rest>.*)")


def plain_length(head: bytes) -> int | None:
    """The length of the body that a request's `head` announces; None if the head is not a plain one."""
    if not _PLAIN_HEAD.fullmatch(head):
        return None
    lowered = head.lower()
    if lowered.count(b"\r\nhost:") != 1 or _ODD_HEADER.search(lowered):
        return None
    announced = lowered.count(b"\r\ncontent-length:")
    if not announced:
        return 0
    length = _LENGTH.search(lowered)
    return int(length[1]) if length and announced == 1 else None


def when_gone(request: Request, callback: Callable[[], object]) -> None:
    """`callback` is called once, on the event loop, if the client goes before it has its answer, or has gone."""
    if has_gone(request):
        callback()
    else:
        request.scope["state"]["when_gone"] = callback


def has_gone(request: Request) -> bool:
    """Whether the client went before it had its answer."""
    return request.scope["state"].get("gone", False)


def _tell(state: dict[str, Any]) -> None:
    state["gone"] = True
    if callback := state.pop("when_gone", None):
        callback()


def _forget(state: dict[str, Any]) -> None:
    """An idle connection keeps its last scope, which must not keep the image of a request that has its answer."""
    state.pop("when_gone", None)


class _Patience:
    """What both protocols share: a clock that closes the connection when it runs out, and word of who has gone."""

    loop: asyncio.AbstractEventLoop
    transport: Any  # an _Outgoing
    cycle: Any
    timeout_keep_alive: int
    timeout_keep_alive_task: asyncio.TimerHandle | None
    timeout_keep_alive_handler: Callable[[], None]
    _unset_keepalive_if_required: Callable[[], None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._clock: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]  # of the protocol that this is mixed into
        self.transport.expect_progress()

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        if not self.transport.is_closing():
            self.transport.expect_nothing()

    def eof_received(self) -> None:
        self.transport.expect_progress()  # it closes by itself at the end of this

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_clock()
        self.transport.expect_nothing()
        super().connection_lost(error)  # type: ignore[misc]
        self._unset_keepalive_if_required()  # uvicorn does so only if there was no error, and a reset is one
        if self.cycle and not self.cycle.response_complete:
            _tell(self.cycle.scope["state"])

    def _start_clock(self) -> None:
        if not self._clock:
            self._clock = self.loop.call_later(SECONDS, self._give_up)

    def _stop_clock(self) -> None:
        if self._clock:
            self._clock.cancel()
            self._clock = None

    def _give_up(self) -> None:
        self._clock = None
        if not self.transport.is_closing():
            self.transport.close()

    def _keep_alive(self) -> None:
        """The rest of an answered body has come, so the connection is idle: uvicorn arms its clock at the answer alone,
        and stops it at whatever comes then."""
        self._stop_clock()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)


class _Outgoing:
    """A transport that sends the head of an answer together with its body: one system call, one packet. And that waits
    for nobody who takes nothing of what is to be sent, though for who takes it slowly.

    What is written to one that is closing is dropped, as asyncio does; uvloop would raise.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self._clock: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        if self._held:
            held, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.writelines((held, data))
        else:
            self._held = data
            self._loop.call_soon(self._flush)  # what nothing follows is sent all the same

    def close(self) -> None:
        self._flush()
        if not self._transport.is_closing():
            self._transport.close()  # which waits until all is sent
            self.expect_progress()

    def expect_progress(self) -> None:
        self.expect_nothing()
        if left := self._left():
            self._clock = self._loop.call_later(SECONDS_TO_TAKE, self._look, left)

    def _look(self, left_before: int) -> None:
        self._clock = None
        if self._left() < left_before:
            self.expect_progress()
        else:
            self._transport.abort()

    def _left(self) -> int:
        """Bytes that the client has not taken. The system's buffer counts too: it asks for more in large steps only."""
        left = self._transport.get_write_buffer_size()
        if left and sys.platform == "linux":
            left += int.from_bytes(ioctl(self._transport.get_extra_info("socket"), TIOCOUTQ, bytes(4)), sys.byteorder)
        return left

    def expect_nothing(self) -> None:
        if self._clock:
            self._clock.cancel()
            self._clock = None

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(_Patience, HttpToolsProtocol):
    """A connection for as long as its requests are plain; httptools never sees more than one of them at a time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._missing = 0  # bytes of the present request's body
        self._behind = b""  # what came after it, before its answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = _Outgoing(transport, self.loop)
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            body, data = (data, b"") if len(data) <= self._missing else (data[: self._missing], data[self._missing :])
            self._missing -= len(body)
            super().data_received(body)
            if not self._missing and self.cycle.response_complete:
                self._keep_alive()
        if not data:
            return
        if self.cycle and not self.cycle.response_complete:
            self._behind += data
            self.flow.pause_reading()
        else:
            self._begin(data)

    def _begin(self, data: bytes) -> None:
        """The first bytes of a request."""
        head = data.find(b"\r\n\r\n", 0, LONGEST_PLAIN_HEAD) + 4
        length = plain_length(data[:head])
        if length is None:
            self._hand_over(data)
            return
        self._stop_clock()
        end = head + length
        self._missing = max(0, end - len(data))
        self._behind = data[end:]
        super().data_received(data[:end])

    def _hand_over(self, data: bytes) -> None:
        self._stop_clock()
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        strict = StrictConnection(self.config, self.server_state, self.app_state, self.loop)
        self.transport.set_protocol(strict)
        strict.connection_made(self.transport)
        if self.flow.write_paused:  # the transport says so once, and has said it to us
            strict.pause_writing()
        strict.data_received(data)

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, but what comes at once is not copied, and no handler is woken for every segment of TCP's."""
        cycle = self.cycle
        if cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body  # uvicorn makes bytes of it, which these are
        else:
            if isinstance(cycle.body, bytes):
                cycle.body = bytearray(cycle.body)
            cycle.body += body
        if len(cycle.body) > BODY_PIECE:
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.flow.resume_reading()  # nothing else tells that the client has gone

    def on_response_complete(self) -> None:
        _forget(self.cycle.scope["state"])
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._missing:
            self._start_clock()
        elif self._behind:
            data, self._behind = self._behind, b""
            self._unset_keepalive_if_required()
            self._begin(data)


class _Requests(h11.Connection):
    """What h11 reads, with three rules of its server's: how a target is written, whose word a body's length is, and how
    many chunks it may have.

    h11 takes 15 µs a chunk, so that a trickle of one-byte chunks would keep the event loop from everyone else.
    """

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            return _in_origin_form(_of_one_length(event))
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._bytes / CHUNK:
                raise h11.RemoteProtocolError("a body in tiny chunks")
        return event


def _in_origin_form(request: h11.Request) -> h11.Request:
    """A target may be a whole URL, whose authority then counts in place of Host (RFC 9112, section 3.2.2)."""
    url = _WHOLE_URL.fullmatch(request.target)
    if not url:
        return request
    headers = [(name, url["authority"] if name == b"host" else value) for name, value in request.headers]
    rest = url["rest"]
    return _changed(request, headers, rest if rest.startswith(b"/") else b"/" + rest)


def _of_one_length(request: h11.Request) -> h11.Request:
    """Of two lengths the chunks' counts, and the connection ends with the answer (RFC 9112, sections 6.1 and 6.3)."""
    names = {name for name, _ in request.headers}
    if not {b"content-length", b"transfer-encoding"} <= names:
        return request
    headers = [(name, value) for name, value in request.headers if name not in (b"content-length", b"connection")]
    return _changed(request, [*headers, (b"connection", b"close")], request.target)  # uvicorn repeats it in the answer


def _changed(request: h11.Request, headers: list[tuple[bytes, bytes]], target: bytes) -> h11.Request:
    return h11.Request(method=request.method, headers=headers, target=target, http_version=request.http_version)


class StrictConnection(_Patience, H11Protocol):
    """A connection that takes all of HTTP/1.1, with a lower bound to the chunks of a body."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Requests(h11.SERVER)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        before = self.conn.their_state
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if before is h11.SEND_BODY:
                self._keep_alive()
            if self.conn.trailing_data[0]:
                self._start_clock()
        elif self.cycle and not self.cycle.response_complete:
            self._stop_clock()
        if self.conn.their_state in (h11.DONE, h11.MIGHT_SWITCH_PROTOCOL) and not self.conn.trailing_data[0]:
            self.flow.resume_reading()  # nothing else tells that the client has gone

    def on_response_complete(self) -> None:
        _forget(self.cycle.scope["state"])
        super().on_response_complete()
        half_a_head = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if half_a_head or self.conn.their_state is h11.SEND_BODY:
            self._start_clock()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, but nothing is said in the middle of an answer or behind it, nor by the handler behind this."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle:
            self.cycle.disconnected = True
