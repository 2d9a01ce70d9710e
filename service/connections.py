"""Connections that are patient, but not for ever.

uvicorn waits without end for a request's head, and for the rest of a body that has been answered already; and its
parser (h11, which is right about every odd client) takes 15 µs a chunk, so that a trickle of one-byte chunks would
keep the event loop from everyone else.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 10.0  # for a head from its first byte (or from connecting), and for the rest of a body that was answered
CHUNK = 32  # average bytes that the chunks of a body must have, after the first FREE_CHUNKS
FREE_CHUNKS = 2000


class Connection(H11Protocol):
    """uvicorn's connection with a deadline and a lower bound to chunks."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._clock: asyncio.TimerHandle | None = None
        self._lines = self._bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.SEND_BODY and self._in_tiny_chunks(data):
            self.transport.close()
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._start_clock()
        elif self.cycle and not self.cycle.response_complete:
            self._stop_clock()
            if self.conn.their_state is not h11.SEND_BODY:
                self._lines = self._bytes = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._start_clock()

    def _in_tiny_chunks(self, data: bytes) -> bool:
        """Whether the body has too many line ends for its length: a chunk has two, a picture one in 65,536 bytes."""
        if not any(name == b"transfer-encoding" for name, _ in self.headers):
            return False
        self._lines += data.count(b"\r\n")
        self._bytes += len(data)
        return self._lines / 2 > FREE_CHUNKS + self._bytes / CHUNK

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
