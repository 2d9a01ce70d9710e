"""Clients' connections: who may send what when, how long it may take, and how the application learns of a disconnect.

`Connection` stands between the socket and uvicorn's own HTTP/1.1 protocol, which is used as it is, through the
interface that asyncio defines for every protocol. uvicorn waits for ever for the rest of a head or of a body and for a
client to read; a `Connection` has deadlines for these (`service.http.deadlines`). It hands bytes on in the steps of
HTTP: a head, then its body, then nothing before the response is complete. It learns the steps from
`service.http.http1`, the ASGI side of the same connection.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import h11
import uvicorn
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.deadlines import Alarm, Deadlines
from service.http.outgoing import Outgoing

CONNECTION = "connection"  # key of the connection in a request's scope["state"]

BODY_PIECE = 2**18  # bytes of a body that are worth waking a handler for before the body is complete
# h11 takes 15 µs for a chunk, however small, so chunked bodies are handed on in slices, between which other
# connections have their turn; and the bytes that are not the body's own are limited.
CHUNKED_SLICE = 2**12
FREE_FRAMING = 12_000  # bytes: 2,000 chunks of one byte each, with 6 bytes of framing
FRAMING_SHARE = 6 / 32  # of the body's bytes, beyond FREE_FRAMING: chunks of 32 bytes on average

_HEAD_END = re.compile(rb"\n\r?\n")  # h11 accepts a bare line feed too
_LONGEST_HEAD_END = 3


def when_gone(request: Request, callback: Callable[[], object]) -> None:
    """Calls `callback` once, on the event loop, if the client disconnects before its response is complete.

    It is called at once if the client has gone already, and never under a server without these connections. A second
    callback replaces the first.
    """
    connection: Connection | None = request.scope["state"].get(CONNECTION)
    if connection:
        connection.when_gone(callback)


def has_gone(request: Request) -> bool:
    """Whether the client disconnected before its response was complete."""
    connection: Connection | None = request.scope["state"].get(CONNECTION)
    return connection is not None and connection.gone


class _Step(Enum):
    HEAD = auto()  # no request; bytes up to the end of a head pass
    CALL = auto()  # a head has passed, and the application is about to be called; nothing passes
    BODY = auto()  # the rest of a body of known length passes
    CHUNKS = auto()  # the length is unknown: everything passes, in slices
    RESPONSE = auto()  # the body is complete, the response is not; nothing passes


class Connection(asyncio.Protocol):
    """One connection. uvicorn makes it (option `http`), so the arguments are uvicorn's."""

    deadlines = Deadlines()

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.gone = False
        self._loop = _loop or asyncio.get_running_loop()
        self._http: asyncio.Protocol = H11Protocol(config, server_state, {**app_state, CONNECTION: self}, self._loop)
        self._when_gone: Callable[[], object] | None = None
        self._head_alarm = Alarm(self._loop)
        self._step = _Step.HEAD
        self._last_of_head = b""  # its last bytes so far: the blank line at its end may come in two pieces
        self._body_left = 0  # in step BODY: bytes that have not passed
        self._chunked_bytes = 0  # in step CHUNKS: bytes that have passed, and how many of them were the body's own
        self._chunked_body = 0
        self._waiting: list[bytes] = []  # bytes received that may not pass yet
        self._waiting_size = 0
        self._pauses_between_slices = False
        self._http_pauses = False
        self._reading = True

    # --- asyncio's side --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._outgoing = Outgoing(transport, self._loop, self.deadlines.write, self._on_flow)
        self._http.connection_made(self._outgoing)
        self._head_alarm.set(self.deadlines.read, self._outgoing.close)

    def data_received(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_size += len(data)
        self._pass_on()

    def eof_received(self) -> None:
        self._outgoing.expect_progress()  # the transport closes by itself once everything is sent

    def pause_writing(self) -> None:
        self._http.pause_writing()
        self._outgoing.expect_progress()

    def resume_writing(self) -> None:
        self._http.resume_writing()
        if not self._outgoing.is_closing():
            self._outgoing.expect_nothing()

    def connection_lost(self, error: Exception | None) -> None:
        self._outgoing.expect_nothing()
        self._abandon()

    # --- the application's side (service.http.http1) ---------------------------------------------------------------

    def request_began(self, length: int | None) -> None:
        """The application is called for a request whose body has `length` bytes; None if that is unknown."""
        self._head_alarm.clear()
        # Behind a chunked body the next head may pass with some of its own body, so the rest's length is unknown.
        known = length is not None and self._step is _Step.CALL
        self._chunked_bytes = self._chunked_body = 0
        self._body_left = length or 0
        if known:
            self._step = _Step.BODY if length else _Step.RESPONSE
        else:
            self._step = _Step.CHUNKS
        self._pass_on()

    def body_received(self, size: int, complete: bool) -> None:
        """The application has `size` more bytes of the body, and with them the whole body if `complete`."""
        if complete:
            self._step = _Step.RESPONSE
            self._choose_whether_to_read()
        elif self._step is _Step.CHUNKS:
            self._chunked_body += size
            if self._chunked_bytes - self._chunked_body > FREE_FRAMING + FRAMING_SHARE * self._chunked_body:
                self._outgoing.close()
                self._abandon()

    def response_complete(self, body_complete: bool) -> None:
        """The response is complete. If the body is not, the connection is of no further use."""
        self._when_gone = None
        self._step = _Step.HEAD
        self._last_of_head = b""
        if not body_complete:
            self._outgoing.close()
        self._pass_on()

    def when_gone(self, callback: Callable[[], object]) -> None:
        if self.gone:
            callback()
        else:
            self._when_gone = callback

    # --- bytes on their way in -------------------------------------------------------------------------------------

    def _pass_on(self) -> None:
        """Hands on those of the waiting bytes that may pass now."""
        while self._waiting and self._may_pass() and not self._outgoing.is_closing():
            data = b"".join(self._waiting)
            size = self._passing(data)
            self._waiting = [data[size:]] if size < len(data) else []
            self._waiting_size = len(data) - size
            self._hand_on(data[:size])
        self._choose_whether_to_read()

    def _may_pass(self) -> bool:
        if self._step is _Step.BODY:
            return self._waiting_size >= min(self._body_left, BODY_PIECE)
        if self._step is _Step.CHUNKS:
            return not self._pauses_between_slices and not self._http_pauses
        return self._step is _Step.HEAD

    def _passing(self, data: bytes) -> int:
        """How many of the bytes pass now: more than 0. Takes the step that they lead to."""
        if self._step is _Step.HEAD:
            return self._passing_of_head(data)
        if self._step is _Step.BODY:
            size = min(len(data), self._body_left)
            self._body_left -= size
            if not self._body_left:
                self._step = _Step.RESPONSE
            return size
        size = min(len(data), CHUNKED_SLICE)
        self._chunked_bytes += size
        self._pauses_between_slices = True
        self._loop.call_soon(self._next_slice)
        return size

    def _passing_of_head(self, data: bytes) -> int:
        if not self._head_alarm.is_set:
            self._head_alarm.set(self.deadlines.read, self._outgoing.close)
        seen = self._last_of_head + data
        end = _HEAD_END.search(seen)
        if not end:
            self._last_of_head = seen[1 - _LONGEST_HEAD_END :]
            return len(data)
        size = end.end() - len(self._last_of_head)
        self._last_of_head = b""
        self._step = _Step.CALL
        return size

    def _next_slice(self) -> None:
        self._pauses_between_slices = False
        self._pass_on()

    def _hand_on(self, data: bytes) -> None:
        try:
            self._http.data_received(data)
        except h11.LocalProtocolError:
            self._outgoing.close()  # uvicorn tried to send a 400 for malformed bytes after a response had begun
        if self._outgoing.is_closing():
            self._abandon()  # uvicorn has sent a 400; the handler's own response must not follow it

    def _abandon(self) -> None:
        """Ends the request in progress, whose response cannot be sent any more."""
        http, self._http = self._http, asyncio.Protocol()  # whose methods do nothing
        http.connection_lost(None)  # with an error uvicorn would leave its keep-alive timer running
        self._waiting, self._waiting_size = [], 0
        self._head_alarm.clear()
        self.gone = True
        callback, self._when_gone = self._when_gone, None
        if callback:
            callback()

    def _on_flow(self, pauses: bool) -> None:
        self._http_pauses = pauses
        if not pauses and self._waiting:
            self._loop.call_soon(self._pass_on)
        self._choose_whether_to_read()

    def _choose_whether_to_read(self) -> None:
        """While a response is awaited, only reading shows that the client has gone."""
        if self._step is _Step.RESPONSE:
            reads = not self._waiting
        elif self._step is _Step.BODY:
            reads = not self._http_pauses
        else:
            reads = not self._waiting and not self._http_pauses
        if reads != self._reading and not self._transport.is_closing():
            self._reading = reads
            if reads:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
