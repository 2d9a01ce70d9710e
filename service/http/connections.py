"""Clients' connections: deadlines, the order of what is read, and the notice that a client has disconnected.

`Connection` sits between the socket and uvicorn's unmodified HTTP/1.1 protocol, and uses it through the interface that
asyncio defines for every protocol. uvicorn waits for ever for the rest of a head or body, and for a client to read; a
`Connection` has deadlines for these (`service.http.deadlines`), and shares limits with all others
(`service.http.traffic`). It passes bytes on in the steps of HTTP: a whole head, then its body, then nothing until the
response is complete. It learns about the steps from `service.http.http1`, the ASGI side of the same connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import h11
import uvicorn
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http import refusals
from service.http.deadlines import Alarm
from service.http.outgoing import Outgoing, limit_system_buffer
from service.http.problems import Problem
from service.http.traffic import Traffic
from service.http.uploads_in_progress import FREE_BYTES, client_of

# The keys under which a request's scope["state"] holds its connection, and what it occupies until its response is sent.
CONNECTION = "connection"
UNTIL_SENT = "until_sent"

# TCP resets a connection that is closed while received bytes are unread, and the client loses the response. So after a
# refusal, what still arrives is discarded for this time.
REFUSED_SECONDS = 2.0

BODY_PIECE = FREE_BYTES  # smaller pieces of an incomplete body are collected, so that they do not wake its handler
# h11 needs 15 µs for a chunk, however small. So chunked bodies are passed on in slices, between which the event loop
# serves other connections, and the bytes that frame the chunks are limited.
CHUNKED_SLICE = 2**12
FREE_FRAMING = 12_000  # bytes: 2,000 chunks of one byte each, with 6 bytes of framing
FRAMING_SHARE = 6 / 32  # of the body's bytes, in addition to FREE_FRAMING: allows chunks of 32 bytes on average

_HEAD_END = re.compile(rb"\n\r?\n")  # h11 accepts a bare line feed too
_LONGEST_HEAD_END = 3
_LAST_CHUNK = b"0\r\n\r\n"
_FIRST_OF_METHOD = 0x21  # the lowest character code that a request can begin with


def when_gone(request: Request, callback: Callable[[], object]) -> None:
    """Calls `callback` once, on the event loop, if the client disconnects before its response is complete.

    If the client has already disconnected, the call happens at once. Under a server without these connections it never
    happens. A second callback replaces the first.
    """
    connection: Connection | None = request.scope["state"].get(CONNECTION)
    if connection:
        connection.when_gone(callback)


def until_sent(request: Request) -> contextlib.ExitStack:
    """The contexts that end once the client has received the last byte of the response, or is gone."""
    stack: contextlib.ExitStack = request.scope["state"][UNTIL_SENT]
    return stack


def body_size(request: Request) -> Callable[[], int]:
    """A function that returns how many bytes of the request's body have arrived."""
    connection: Connection | None = request.scope["state"].get(CONNECTION)
    return connection.body_size if connection else lambda: 0


class _Step(Enum):
    HEAD = auto()  # no request is in progress; a head passes once it is complete
    HELD = auto()  # too many uploads are in progress; the head passes once enough of its body has arrived
    CALL = auto()  # a head has passed, and the application is about to be called; nothing passes
    BODY = auto()  # the body's length is known; its remaining bytes pass
    CHUNKS = auto()  # the body's length is unknown; everything passes, in slices
    DISCARD = auto()  # the request is refused, or its chunks are too small; everything that arrives is discarded
    RESPONSE = auto()  # the body is complete but the response is not; nothing passes


class Connection(asyncio.BufferedProtocol):
    """One connection. uvicorn creates it (option `http`) and so determines all arguments but the first.

    It is a BufferedProtocol so that it decides how much to read at a time. Only a body is read in large pieces. What a
    client sends ahead of its responses is kept in memory until it has read them, and so is read in small pieces.
    """

    def __init__(
        self,
        traffic: Traffic,
        config: uvicorn.Config,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.gone = False
        self.peer = ""
        self.traffic = traffic
        self.deadlines = traffic.deadlines
        self._loop = _loop or asyncio.get_running_loop()
        self._config, self._server_state, self._app_state = config, server_state, app_state
        self._http: asyncio.Protocol | None = None  # uvicorn's, from the first head on, except while the client rests
        self._rests = False
        self._when_gone: Callable[[], object] | None = None
        self._head_alarm = Alarm(self._loop)
        self._step = _Step.HEAD
        self._head_searched = 0  # in step HEAD: the waiting bytes that were searched for its end
        self._held_head = 0  # in step HELD: the size of the head
        self._held_chunks = False  # in step HELD: whether the body comes in chunks, so that its size is unknown
        self._enough = 0  # in step HELD: the number of waiting bytes with which the head passes
        self._body_size = 0  # bytes of the body that have arrived, with the framing of its chunks
        self._body_left = 0  # in step BODY: bytes that have not passed yet
        self._chunked_bytes = 0  # in step CHUNKS: bytes that have passed, framing included
        self._chunked_body = 0  # in step CHUNKS: bytes of the body without framing
        self._waiting: list[bytes] = []  # received bytes that may not pass yet
        self._waiting_size = 0
        self._pauses_between_slices = False
        self._http_pauses = False
        self._reading = True
        self._drained: asyncio.Event | None = None  # None while nothing that was written waits for the system

    # --- asyncio's side --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.set_write_buffer_limits(0)  # so that a response counts as sent only if the system has taken all of it
        limit_system_buffer(transport)
        self._outgoing = Outgoing(
            transport, self._loop, self.deadlines, self._on_flow, lambda: self.evict("slow_reader")
        )
        self._head_alarm.set(self.deadlines.read, self._on_late_head)
        peer = transport.get_extra_info("peername")
        self.peer = client_of(peer[0]) if isinstance(peer, tuple) else ""
        self.traffic.connections.add(self)

    def get_buffer(self, _sizehint: int) -> memoryview:
        """The buffer for the next bytes. All connections share it, because its contents are copied at once."""
        is_body = self._step in (_Step.BODY, _Step.CHUNKS, _Step.HELD, _Step.DISCARD)
        self._buffer = self.traffic.large_buffer if is_body else self.traffic.small_buffer
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._step is not _Step.DISCARD:
            self._received(bytes(self._buffer[:nbytes]))

    def _received(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_size += len(data)
        if self._step in (_Step.BODY, _Step.CHUNKS, _Step.HELD):
            self._count_body(len(data))
        self._pass_on()

    def eof_received(self) -> None:
        self._outgoing.expect_progress()  # once everything is sent, the transport closes by itself

    def pause_writing(self) -> None:
        self._drained = asyncio.Event()
        if self._http:
            self._http.pause_writing()
        self._outgoing.expect_progress()

    def resume_writing(self) -> None:
        self._set_drained()
        if self._http:
            self._http.resume_writing()
        if not self._outgoing.is_closing():
            self._outgoing.expect_nothing()

    def connection_lost(self, _error: Exception | None) -> None:
        self._outgoing.expect_nothing()
        self.traffic.connections.remove(self)
        self._abandon()

    def evict(self, reason: str) -> None:
        """Closes the connection at once, because of a limit. Unsent bytes are lost."""
        self.traffic.closed(reason)
        self._transport.abort()

    def close(self) -> None:
        """Closes the connection once everything is sent."""
        self._outgoing.close()

    def rest(self, seconds: float) -> None:
        """Must be called on a connection that has been idle for `seconds`.

        It frees what uvicorn keeps of the last request, which is more than the connection itself needs. The next head
        gets a new protocol. uvicorn's limit for idle connections ends with its protocol, so another takes its place.
        """
        if self._http and self._step is _Step.HEAD and not self._waiting:
            self._leave_http()
            self._rests = True
            self._head_alarm.set(max(0.0, self.deadlines.idle - seconds), self._outgoing.close)

    # --- the application's side (service.http.http1) ---------------------------------------------------------------

    def request_began(self, length: int | None) -> None:
        """Called when the application starts on a request. `length`: bytes of its body, None if unknown."""
        self._head_alarm.clear()
        # After a chunked body, the next head may pass together with part of its own body, so it is unknown how much of
        # that body is still to come.
        known = length is not None and self._step is _Step.CALL
        self._chunked_bytes = self._chunked_body = 0
        self._body_left = length or 0
        self._count_body(self._waiting_size if length is None else min(length, self._waiting_size))
        if known:
            self._step = _Step.BODY if length else _Step.RESPONSE
        else:
            self._step = _Step.CHUNKS
        self._pass_on()

    def body_received(self, size: int, complete: bool) -> None:
        """Called when the application has received `size` more bytes of the body. `complete`: they are the last."""
        if complete:
            self._step = _Step.RESPONSE
            self._count_body(-self._body_size)
            self._choose_whether_to_read()
        elif self._step is _Step.CHUNKS:
            self._chunked_body += size
            if self._chunked_bytes - self._chunked_body > FREE_FRAMING + FRAMING_SHARE * self._chunked_body:
                self._step = _Step.DISCARD
                self._waiting, self._waiting_size = [], 0
                self._count_body(-self._body_size)
                self._choose_whether_to_read()

    def body_size(self) -> int:
        """The bytes of an incomplete body that have arrived."""
        return self._body_size

    def unsent(self) -> int:
        """The number of bytes written for the client that it has not received."""
        return self._outgoing.unsent()

    @property
    def is_drained(self) -> bool:
        """Whether the system has taken everything that was written."""
        return self._drained is None

    async def drained(self) -> None:
        """Waits until the system has taken everything, or the connection is lost."""
        if self._drained:
            await self._drained.wait()

    @property
    def discards_body(self) -> bool:
        """Whether the chunks of the body are too small, so that the rest of it is discarded unparsed."""
        return self._step is _Step.DISCARD and not self.gone

    def response_complete(self, body_complete: bool) -> None:
        """Called when the response is complete. If the request's body is not, the connection is closed."""
        self._when_gone = None
        if self.gone:  # bytes were refused meanwhile, and nothing more may be sent
            return
        self._step = _Step.HEAD
        self._head_searched = 0
        self._count_body(-self._body_size)
        if not body_complete:
            self._outgoing.close()
        self.traffic.connections.set_idle(self)
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
            if self._step is _Step.DISCARD:
                break
            self._waiting = [data[size:]] if size < len(data) else []
            self._waiting_size = len(data) - size
            if not size:
                break
            self._hand_on(data[:size])
        self._choose_whether_to_read()

    def _may_pass(self) -> bool:
        if self._step is _Step.BODY:
            return self._waiting_size >= min(self._body_left, BODY_PIECE)
        if self._step is _Step.HELD:
            return self._waiting_size >= self._enough or (
                self._held_chunks and self._waiting_size > self._held_head and self._waiting[-1].endswith(_LAST_CHUNK)
            )
        if self._step is _Step.CHUNKS:
            return not self._pauses_between_slices and not self._http_pauses
        return self._step is _Step.HEAD

    def _passing(self, data: bytes) -> int:
        """How many of the bytes pass now; 0 if a head is incomplete. Changes to the step that follows them."""
        if self._step is _Step.HEAD:
            return self._passing_of_head(data)
        if self._step is _Step.HELD:
            return self._end_holding()
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
        if self._rests or not self._head_alarm.is_set:
            self._rests = False
            self._head_alarm.set(self.deadlines.read, self._on_late_head)
        end = _HEAD_END.search(data, max(0, self._head_searched - _LONGEST_HEAD_END + 1))
        size = end.end() if end else len(data)
        if size > refusals.MAX_HEAD:
            self._refuse(refusals.head_too_long())
        elif data[0] < _FIRST_OF_METHOD:
            self._refuse(refusals.malformed(data))
        if not end:
            self._head_searched = len(data)
        elif self._step is _Step.HEAD:
            if self.traffic.uploads.crowded and (expected := refusals.expected_body(data[:size])):
                self._hold(size, expected)
            else:
                self._pass_head()
                return size
        return 0

    def _pass_head(self) -> None:
        self._step = _Step.CALL
        self.traffic.connections.set_busy(self)

    def _hold(self, head: int, expected: int) -> None:
        """Keeps the head of an upload back. It costs much less memory here than in the application."""
        self._step = _Step.HELD
        self._held_head = head
        self._held_chunks = expected == refusals.UNKNOWN
        self._enough = head + min(expected, BODY_PIECE)
        self._count_body(self._waiting_size - head)
        self.traffic.uploads.hold(self._start)
        self._head_alarm.set(self.deadlines.body, self._on_late_body)
        self._loop.call_soon(self._pass_on)  # its body may have arrived together with it

    def _start(self) -> None:
        """Ends the holding, because the application can take another upload."""
        self._enough = 0
        self._pass_on()

    def _end_holding(self) -> int:
        self._count_body(-self._body_size)
        self.traffic.uploads.stop_holding(self._start)
        self._pass_head()
        return self._held_head

    def _on_late_body(self) -> None:
        self.traffic.closed("slow_upload")
        self._refuse(refusals.slow_upload(self.deadlines.body))

    def _next_slice(self) -> None:
        self._pauses_between_slices = False
        self._pass_on()

    def _hand_on(self, data: bytes) -> None:
        """Passes bytes to uvicorn. It writes something meanwhile only if they are malformed: a 400 as plain text."""
        if self._http is None:
            state = {**self._app_state, CONNECTION: self}
            self._http = H11Protocol(self._config, self._server_state, state, self._loop)
            self._http.connection_made(self._outgoing)
        self._outgoing.withhold()
        try:
            self._http.data_received(data)
        except h11.LocalProtocolError:  # uvicorn tried to send its 400 although a response had begun
            self._outgoing.stop_withholding()
            self._outgoing.close()
            self._abandon()
            return
        if self._outgoing.stop_withholding():
            is_head = self._step is _Step.CALL
            self._refuse(refusals.malformed(data if is_head else b""))

    def _refuse(self, problem: Problem) -> None:
        """Answers bytes that are not valid HTTP, in place of uvicorn, and ends the connection."""
        self.traffic.refused(problem)
        self._step = _Step.DISCARD
        self._leave_http()
        self._abandon()
        self._outgoing.write(refusals.response(problem))
        self._outgoing.end()
        self._head_alarm.set(REFUSED_SECONDS, self._outgoing.close)

    def _on_late_head(self) -> None:
        self.traffic.closed("head_timeout")
        self._outgoing.close()

    def _set_drained(self) -> None:
        drained, self._drained = self._drained, None
        if drained:
            drained.set()

    def _count_body(self, size: int) -> None:
        self._body_size += size
        self.traffic.uploads.count_bytes(size)

    def _leave_http(self) -> None:
        """Ends uvicorn's protocol, but not the connection."""
        http, self._http = self._http, None
        if http:
            self._outgoing.withhold()  # it would close the transport
            http.connection_lost(None)
            self._outgoing.stop_withholding()

    def _abandon(self) -> None:
        """Ends the request in progress. Its response can no longer be sent."""
        if self._http:
            http, self._http = self._http, asyncio.Protocol()  # its methods do nothing
            http.connection_lost(None)  # None, because with an error uvicorn leaves its keep-alive timer running
        self._count_body(-self._body_size)
        self.traffic.uploads.stop_holding(self._start)
        self._set_drained()
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
        elif self._step in (_Step.HEAD, _Step.HELD, _Step.BODY):  # what waits is incomplete
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
