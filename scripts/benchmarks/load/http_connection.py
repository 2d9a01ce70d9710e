"""One HTTP/1.1 client connection. It must be cheap, because it shares the cores with the server that it measures.

It supports only what the load needs: one request at a time, as bytes, and answers with a Content-Length.
"""

import asyncio
from typing import NamedTuple

END_OF_HEAD = b"\r\n\r\n"


class Answer(NamedTuple):
    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """usable: whether another request can be sent. A connection that is not usable must be closed."""

    def __init__(self) -> None:
        self.usable = True
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._received = bytearray()
        self._status = self._body_from = self._body_to = 0

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """The answer. Raises ConnectionError if the server closes first, ValueError for an answer without a length."""
        self._waiting = asyncio.get_running_loop().create_future()
        if self._transport is None or not self.usable:
            self._fail(ConnectionError("the connection is closed"))
        else:
            self._transport.write(request)
        return self._waiting

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._body_from:
            end = self._received.find(END_OF_HEAD)
            if end < 0:
                return
            try:
                self._read_head(bytes(self._received[:end]).lower(), end + len(END_OF_HEAD))
            except ValueError as error:
                self._fail(error)
                self.close()
                return
        if len(self._received) >= self._body_to:
            self._finish()

    def connection_lost(self, _error: Exception | None) -> None:
        self.usable = False
        self._fail(ConnectionError("the connection was closed before the answer was complete"))

    def _read_head(self, head: bytes, body_from: int) -> None:
        """Reads status and length. Raises ValueError if the answer has no Content-Length."""
        lines = head.split(b"\r\n")
        self._status = int(lines[0].split(b" ", 2)[1])
        headers = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
        if (length := headers.get(b"content-length")) is None:
            raise ValueError("the answer has no Content-Length")
        self._body_from, self._body_to = body_from, body_from + int(length)
        if headers.get(b"connection") == b"close":
            self.usable = False

    def _finish(self) -> None:
        answer = Answer(self._status, bytes(self._received[self._body_from : self._body_to]))
        self._received.clear()
        self._body_from = 0
        # If the answer came before all of the request was sent, the server would read the rest as the next request.
        if self._transport is not None and self._transport.get_write_buffer_size():
            self.usable = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


async def connect(host: str, port: int, tls: bool) -> Connection:
    """Opens a connection. Raises OSError if no server listens."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port, ssl=tls or None)
    return connection
