"""The rules of HTTP/1.1 that uvicorn leaves to the application.

`Http1` is the outermost layer of the application. It also reports a request's progress to `service.http.connections`,
which cannot see it in the bytes: that a request began, that its body is complete, that its response is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.connections import CONNECTION, UNTIL_SENT, Connection
from service.http.problems import Problem

# TCP resets a connection that is closed while received bytes are unread. The client would then lose the response that
# refuses its body. So the rest of the body is read and discarded, within these bounds.
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 2**20
SMALL_BODY = 2**20  # bytes; after a body up to this size, the connection stays open
# A longer response is written in pieces of this size. Written at once, it would be copied as a whole, and nobody would
# know how much of it the client has read.
RESPONSE_PIECE = 2**17

_ABSOLUTE_FORM = re.compile(rb"(?i:https?)://(?:[^/?#]*@)?(?P<authority>[^/?#@]+)(?P<path>.*)")


class Http1:
    """Applies these rules to requests for `app`. It needs connections of the class `Connection`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(in_origin_form(scope), receive, send)
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        finally:
            scope["state"].clear()  # uvicorn keeps the scope until the connection's next request


def in_origin_form(scope: Scope) -> Scope:
    """Reduces a target that is a whole URL to its path. Its authority replaces Host (RFC 9112, section 3.2.2)."""
    if scope["raw_path"].startswith(b"/"):
        return scope
    url = _ABSOLUTE_FORM.fullmatch(scope["raw_path"])
    if not url:
        return scope
    path = url["path"] if url["path"].startswith(b"/") else b"/" + url["path"]
    headers = [(name, url["authority"] if name == b"host" else value) for name, value in scope["headers"]]
    return {**scope, "path": unquote(path.decode("ascii")), "raw_path": path, "headers": headers}


class _Exchange:
    """One request and its response, as the application sees them."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._connection: Connection = scope["state"][CONNECTION]
        self._closes = scope["http_version"] == "1.0"
        length: int | None = None
        chunked = False
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = True
            elif name == b"connection" and b"close" in value.lower():
                self._closes = True
        if chunked and length is not None:
            scope = self._without_content_length(scope)
        self.scope = scope
        self._body_complete = not length and not chunked
        self._has_small_body = not chunked and (length or 0) <= SMALL_BODY
        self._connection.request_began(None if chunked else length or 0)

    def _without_content_length(self, scope: Scope) -> Scope:
        """Transfer-Encoding overrides Content-Length, and the connection closes (RFC 9112, sections 6.1 and 6.3)."""
        self._closes = True
        return {**scope, "headers": [each for each in scope["headers"] if each[0] != b"content-length"]}

    async def receive(self) -> Message:
        """The next part of the body. Raises Problem (400) if the chunks of the body are too small."""
        message = await self._receive_and_report()
        if self._connection.discards_body:
            self._closes = True
            detail = "The chunks of the body are too small. Send chunks of at least 32 bytes."
            raise Problem(400, "tiny_chunks", detail)
        return message

    async def _receive_and_report(self) -> Message:
        # After bytes that are not HTTP, uvicorn's protocol has ended; its `receive` would still send "100 Continue".
        message = {"type": "http.disconnect"} if self._connection.gone else await self._receive()
        if message["type"] == "http.disconnect":
            self._body_complete = True
        else:
            self._body_complete = not message.get("more_body", False)
            self._connection.body_received(len(message.get("body", b"")), self._body_complete)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(self._with_connection_header(message))
            return
        if len(message.get("body", b"")) > RESPONSE_PIECE and self.scope["method"] != "HEAD":
            message = {**message, "body": await self._send_all_but_the_last_piece(message["body"])}
        if message.get("more_body", False):
            await self._send(message)
            return
        if not self._body_complete:
            await self._send({**message, "more_body": True})
            await self._drop_rest_of_body()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)
        await self._until_the_system_has_taken_it(len(message["body"]))
        self._connection.response_complete(self._body_complete)

    async def _send_all_but_the_last_piece(self, body: bytes) -> bytes:
        left = len(body)
        view = memoryview(body)
        with self._connection.traffic.responses.one(
            len(body), lambda: left + self._connection.unsent(), self._drop_reader
        ):
            while left > RESPONSE_PIECE and not self._connection.gone:
                piece = view[len(body) - left :][:RESPONSE_PIECE]
                left -= len(piece)
                await self._send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
            await self._connection.drained()
        return bytes(view[len(body) - left :])

    async def _until_the_system_has_taken_it(self, size: int) -> None:
        if not self._connection.is_drained:
            with self._connection.traffic.responses.one(size, self._connection.unsent, self._drop_reader):
                await self._connection.drained()

    def _drop_reader(self) -> None:
        """Disconnects the client. What its request occupies is free at once, without waiting for the application."""
        self._connection.evict("evicted_reader")
        until_sent: contextlib.ExitStack | None = self.scope["state"].get(UNTIL_SENT)
        if until_sent:
            until_sent.close()

    def _with_connection_header(self, message: Message) -> Message:
        headers: list[Any] = list(message["headers"])
        if any(name == b"connection" for name, _ in headers):
            self._closes = True
            return message
        self._closes = self._closes or not (self._body_complete or self._has_small_body)
        if self._closes:
            headers.append((b"connection", b"close"))
        return {**message, "headers": headers}

    async def _drop_rest_of_body(self) -> None:
        seconds = LINGER_SECONDS if self._closes else self._connection.deadlines.read
        dropped = 0
        try:
            async with asyncio.timeout(seconds):
                while not self._body_complete and dropped < LINGER_BYTES:
                    dropped += len((await self._receive_and_report()).get("body", b""))
        except TimeoutError:
            pass
