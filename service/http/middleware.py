"""What every request gets, whatever its route: an id, a place in the metrics, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import Problem
from service.runtime import Runtime
from service.telemetry.metrics import METHODS

# A client that is refused while it still sends would be cut off before it reads why (TCP resets what goes unread), so
# the rest of its body is read and dropped, within these bounds.
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 2**20
SMALL_BODY = 2**20  # the server drops so much by itself and keeps the connection

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger(__name__)


class Edge:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self._runtime)
        # whatever can be fetched may be asked for its head alone; the server keeps back the body
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(inner, exchange.receive, exchange.send)
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            self._runtime.metrics.failed.labels("internal").inc()
            if exchange.status:
                raise
            await exchange.send_problem(
                Problem(500, "internal", "The service made a mistake; its log has the reason under request_id.")
            )
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(inner.get("route"), "path", "unmatched")
            scope["state"]["route"] = route  # for traces
            took = time.perf_counter() - began
            self._runtime.metrics.requests.labels(method, route, str(exchange.status or 499)).observe(took)


class _Exchange:
    """One request and its response, watched as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, runtime: Runtime) -> None:
        self.status = 0
        self._receive = receive
        self._send = send
        self._runtime = runtime
        self._body_ended = False
        self._linger = False
        self._large_body = False
        self._last = scope.get("http_version") == "1.0"  # of its connection, as far as the client goes
        given = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = given or value
            elif name == b"transfer-encoding" or (name == b"content-length" and int(value) > SMALL_BODY):
                self._large_body = True
            elif name == b"connection" and b"close" in value.lower():
                self._last = True
        known = REQUEST_ID.fullmatch(given)
        self.request_id = given.decode() if known else f"{random.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_ended = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.request_id.encode())]
            said = any(name == b"connection" for name, _ in headers)
            # of one that drains, so that the client goes elsewhere
            closes = said or self._last or self._runtime.draining
            self._linger = not self._body_ended and (self._large_body or closes)
            if not said and (self._linger or closes):
                headers.append((b"connection", b"close"))
            await self._send({**message, "headers": headers})
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
