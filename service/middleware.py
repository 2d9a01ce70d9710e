"""What every request gets, whatever its route: an id, a place in the metrics, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.problems import Problem

# A client that is refused while it still sends would be cut off before it reads why (TCP resets what goes unread), so
# the rest of its body is read and dropped, within these bounds.
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 2**20
SMALL_BODY = 2**20  # the server drops so much by itself and keeps the connection

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger(__name__)


class Edge:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            self._metrics.failed.labels("internal").inc()
            if exchange.status:
                raise
            await exchange.send_problem(
                Problem(500, "internal", "The service made a mistake; its log has the reason under request_id.")
            )
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "path", "unmatched")
            labels = (method, route, str(exchange.status or 499))
            self._metrics.requests.labels(*labels).observe(time.perf_counter() - began)


class _Exchange:
    """One request and its response, watched as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        scope.setdefault("state", {})["request_id"] = self.request_id
        self._receive = receive
        self._send = send
        length = headers.get("content-length", "0")
        self._large_body = "transfer-encoding" in headers or int(length) > SMALL_BODY
        self._body_ended = False
        self._linger = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_ended = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            if self._large_body and not self._body_ended and "connection" not in headers:
                headers["Connection"] = "close"
                self._linger = True
            await self._send(message)
        elif self._linger and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drop_rest_of_body()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._send(message)

    async def send_problem(self, problem: Problem) -> None:
        body = orjson.dumps(problem.document(self.request_id))
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _drop_rest_of_body(self) -> None:
        dropped = 0
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._body_ended and dropped < LINGER_BYTES:
                    dropped += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
