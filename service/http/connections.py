"""Clients' connections: deadlines, the order of what is read, and the notice that a client has disconnected.

`Connection` sits between the socket and uvicorn's unmodified HTTP/1.1 protocol, and uses it through the interface that
asyncio defines for every protocol. uvicorn waits for ever for the rest of a head or body, and for a client to read; a
`Connection` has deadlines for these (`service.http.deadlines`). It passes bytes on in the steps of HTTP: a head, then
its body, then nothing until the response is complete. It learns about the steps from `service.http.http1`, the ASGI
side of the same connection.
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

CONNECTION = "connection"  # the key under which a request's scope["state"] holds its connection

BODY_PIECE = 2**18  # bytes; smaller pieces of an incomplete body are collected, so that they do not wake its handler
# h11 needs 15 µs for a chunk, however small. So chunked bodies are passed on in slices, between which the event loop
# serves other connections, and the bytes that frame the chunks are limited.
CHUNKED_SLICE = 2**12
FREE_FRAMING = 12_000  # bytes: 2,000 chunks of one byte each, with 6 bytes of framing
FRAMING_SHARE = 6 / 32  # of the body's bytes, in addition to FREE_FRAMING: allows chunks of 32 bytes on average

_HEAD_END = re.compile(rb"\n\r?\n")  # h11 accepts a bare line feed too
_LONGEST_HEAD_END = 3


def when_gone(request: Request, callback: Callable[[], object]) -> None:
    """Calls `callback` once, on the event loop, if the client disconnects before its response is complete.

    If the client has already disconnected, the call happens at once. Under a server without these connections it never
    happens. A second callback replaces the first.
    """
    connection: Connection | None = request.scope["state"].get(CONNECTION)
    if connection:
        connection.when_gone(callback)


class _Step(Enum):
    HEAD = auto()  # no request is in progress; bytes up to the end of a head pass
    CALL = auto()  # a head has passed, and the application is about to be called; nothing passes
    BODY = auto()  # the body's length is known; its remaining bytes pass
    CHUNKS = auto()  # the body's length is unknown; everything passes, in slices
    DISCARD = auto()  # the chunks of the body are too small; everything that arrives is discarded
    RESPONSE = auto()  # the body is complete but the response is not; nothing passes


class Connection(asyncio.Protocol):
    """One connection. uvicorn creates it (option `http`) and so determines the arguments."""

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
        self._last_of_head = b""  # its last bytes so far, because the blank line at its end may arrive in two pieces
        self._body_left = 0  # in step BODY: bytes that have not passed yet
        self._chunked_bytes = 0  # in step CHUNKS: bytes that have passed, framing included
        self._chunked_body = 0  # in step CHUNKS: bytes of the body without framing
        self._waiting: list[bytes] = []  # received bytes that may not pass yet
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
        if self._step is _Step.DISCARD:
            return
        self._waiting.append(data)
        self._waiting_size += len(data)
        self._pass_on()

    def eof_received(self) -> None:
        self._outgoing.expect_progress()  # once everything is sent, the transport closes by itself

    def pause_writing(self) -> None:
        self._http.pause_writing()
        self._outgoing.expect_progress()

    def resume_writing(self) -> None:
        self._http.resume_writing()
        if not self._outgoing.is_closing():
            self._outgoing.expect_nothing()

    def connection_lost(self, _error: Exception | None) -> None:
        self._outgoing.expect_nothing()
        self._abandon()

    # --- the application's side (service.http.http1) ---------------------------------------------------------------

    def request_began(self, length: int | None) -> None:
        """Called when the application starts on a request. `length`: bytes of its body, None if unknown."""
        self._head_alarm.clear()
        # After a chunked body, the next head may pass together with part of its own body, so it is unknown how much of
        # that body is still to come.
        known = length is not None and self._step is _Step.CALL
        self._chunked_bytes = self._chunked_body = 0
        self._body_left = length or 0
        if known:
            self._step = _Step.BODY if length else _Step.RESPONSE
        else:
            self._step = _Step.CHUNKS
        self._pass_on()

    def body_received(self, size: int, complete: bool) -> None:
        """Called when the application has received `size` more bytes of the body. `complete`: they are the last."""
        if complete:
            self._step = _Step.RESPONSE
            self._choose_whether_to_read()
        elif self._step is _Step.CHUNKS:
            self._chunked_body += size
            if self._chunked_bytes - self._chunked_body > FREE_FRAMING + FRAMING_SHARE * self._chunked_body:
                self._step = _Step.DISCARD
                self._waiting, self._waiting_size = [], 0
                self._choose_whether_to_read()

    @property
    def discards_body(self) -> bool:
        """Whether the chunks of the body are too small, so that the rest of it is discarded unparsed."""
        return self._step is _Step.DISCARD

    def response_complete(self, body_complete: bool) -> None:
        """Called when the response is complete. If the request's body is not, the connection is closed."""
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
        """Passes on those of the waiting bytes that may pass now."""
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
        """How many of the bytes pass now, at least 1. Changes to the step that follows them."""
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
            self._outgoing.close()  # uvicorn tried to send a 400 for malformed bytes although a response had begun
        if self._outgoing.is_closing():
            self._abandon()  # uvicorn has sent a 400; the handler's own response must not follow it

    def _abandon(self) -> None:
        """Ends the request in progress. Its response can no longer be sent."""
        http, self._http = self._http, asyncio.Protocol()  # its methods do nothing
        http.connection_lost(None)  # None, because with an error uvicorn leaves its keep-alive timer running
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
        """Pauses or resumes reading. Reading while a response is awaited is how a disconnect is noticed."""
        if self._step is _Step.RESPONSE:
            reads = not self._waiting
        elif self._step is _Step.BODY:
            reads = not self._http_pauses
        elif self._step is _Step.DISCARD:
            reads = True
        else:
            reads = not self._waiting and not self._http_pauses
        if reads != self._reading and not self._transport.is_closing():
            self._reading = reads
            if reads:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
