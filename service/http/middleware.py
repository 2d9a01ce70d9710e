"""The layer around all routes: request ids, keys, metrics, the access log, and an answer when a handler fails."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.connections import UNTIL_SENT
from service.http.gate import Gate, Refused
from service.http.problems import Problem
from service.http.request_ids import id_of
from service.keys import Key
from service.runtime import Runtime
from service.telemetry.metrics import METHODS

CLIENT_GONE = 499  # nginx's status for a client that disconnected before its response; only metrics and log see it
LONGEST_PATH = 200  # characters in the access log

log = logging.getLogger(__name__)
access = logging.getLogger("service.access")  # ACCESS_LOG sets its level


class Edge:
    """The layer of the application that sees every request first."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime
        self._gate = Gate(runtime)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        response = _Response(scope, send, self._runtime)
        until_sent = scope["state"][UNTIL_SENT] = contextlib.ExitStack()
        # HEAD is answered like GET; the server omits the body
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        key: Key | None = None
        try:
            key = self._gate.enter(scope)
            scope["state"]["key"] = key.name if key else None
            await self._app(inner, receive, response.send)
        except Refused as refused:
            self._runtime.metrics.rejected.labels(refused.problem.reason).inc()
            await response.send_problem(refused.problem)
        except Exception:
            log.exception("request %s failed", response.request_id)
            self._runtime.metrics.failed.labels("internal").inc()
            if response.status:
                raise
            await response.send_problem(
                Problem(500, "internal", "Internal error; the server log has the details under this request_id.")
            )
        finally:
            until_sent.close()
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(inner.get("route"), "path", "unmatched")
            scope["state"]["route"] = route  # tracing reads it
            seconds = (response.ended or time.perf_counter()) - began
            status = str(response.status or CLIENT_GONE)
            self._runtime.metrics.requests.labels(method, route, status).observe(seconds)
            if key:
                key.leave()
                self._runtime.metrics.key_requests.labels(key.name, status).inc()
            if access.isEnabledFor(logging.INFO):
                access.info("%s", Exchange(scope, route, int(status), seconds, response.request_id))


class Exchange(NamedTuple):
    """A request and its answer, for the access log. The query is left out, because it may hold a secret by mistake."""

    scope: Scope
    route: str
    status: int
    seconds: float
    request_id: str

    def __str__(self) -> str:
        """The line of the log as text."""
        path = quote(self.scope["path"])  # without spaces and quotation marks, which would make the line ambiguous
        shown = path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}…"
        request = f'"{self.scope["method"]} {shown} HTTP/{self.scope["http_version"]}"'
        key = self._key() or "-"
        return f"{self._client() or '-'} {key} {request} {self.status} {self.seconds * 1e3:.1f} ms {self.request_id}"

    def attributes(self) -> dict[str, Any]:
        """The same for the log as JSON, named by OpenTelemetry's conventions for HTTP servers."""
        values = {
            "client.address": self._client(),
            "http.request.method": self.scope["method"],
            "http.response.status_code": self.status,
            "http.route": self.route,
            "http.server.request.duration": round(self.seconds, 6),
            "network.protocol.version": self.scope["http_version"],
            "request.id": self.request_id,
            "url.path": self.scope["path"][:LONGEST_PATH],
            "user.name": self._key(),
        }
        return {name: value for name, value in values.items() if value is not None}

    def _client(self) -> str | None:
        client = self.scope.get("client")
        return client[0] if client else None

    def _key(self) -> str | None:
        """The name of the key."""
        key: str | None = self.scope["state"].get("key")
        return key


class _Response:
    """Sends the response to one request and records its progress.

    status  0 until the response begins        ended  `time.perf_counter()` when its last bytes were sent, else None
    """

    def __init__(self, scope: Scope, send: Send, runtime: Runtime) -> None:
        self.status = 0
        self.ended: float | None = None
        self._send = send
        self._runtime = runtime
        self.request_id = id_of(scope["headers"])
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.request_id.encode())]
            if self._runtime.readiness.draining and not any(name == b"connection" for name, _ in headers):
                headers.append((b"connection", b"close"))  # the client should send its next request to another server
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self.ended = time.perf_counter()  # `send` may return only after the rest of the request's body has arrived
        await self._send(message)

    async def send_problem(self, problem: Problem) -> None:
        body = orjson.dumps(problem.document(self.request_id))
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})
