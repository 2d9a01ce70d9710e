"""Which requests may enter: those with a valid key, within the limits of that key, on the right port.

The decision uses `scope["path"]`, the decoded path by which Starlette chooses the route, and never a URL that is put
together from the Host header (CVE-2026-48710). Every path that is not listed here needs a key, so an odd spelling of a
path can only be refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import Scope

from service.http.problems import Problem
from service.http.uploads_in_progress import client_of
from service.keys import Key, KeyLimitError, Keys
from service.runtime import Runtime

PROBES = frozenset({"/healthz", "/readyz"})
PAGES = frozenset({"/", "/docs", "/openapi.json"})
METRICS = "/metrics"

HOW_TO_SEND = "Send the header `Authorization: Bearer KEY` or `X-API-Key: KEY`"


class Refused(Exception):  # noqa: N818  the request is refused, which is not an error of the service
    """A request may not enter. `problem`: its answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


class Gate:
    """Lets requests in, or refuses them."""

    def __init__(self, runtime: Runtime, clock: Callable[[], float] = time.monotonic) -> None:
        settings = runtime.settings
        self._runtime = runtime
        self._clock = clock
        self._open = PROBES | (PAGES if settings.public_page else set())
        self._open |= {METRICS} if settings.public_metrics else set()

    def enter(self, scope: Scope) -> Key | None:
        """The key of the request, which counts as in flight until its `leave`; None if it needs no key.

        Raises Refused: 401 without a valid key, 429 beyond a limit of the key, 404 for a path of the other port.
        """
        path: str = scope["path"]
        if self._is_on_metrics_port(scope):
            if path != METRICS:
                raise _elsewhere("PORT")
            return None
        key = None if self._runtime.keys is None or path in self._open else self._valid_key(scope, self._runtime.keys)
        if path == METRICS and self._runtime.metrics_port is not None:
            raise _elsewhere("METRICS_PORT")
        if key:
            self._count(key)
        return key

    def _is_on_metrics_port(self, scope: Scope) -> bool:
        port = self._runtime.metrics_port
        return port is not None and (scope.get("server") or ("", None))[1] == port

    def _valid_key(self, scope: Scope, keys: Keys) -> Key:
        key = keys.find(credential(scope))
        if key is None:
            raise _unauthorised("This key is not valid. Ask the operator of the service for a new one.")
        return key

    def _count(self, key: Key) -> None:
        try:
            key.enter(self._clock())
        except KeyLimitError as error:
            detail = f"The key {key.name} allows {error.limit}. Try again in {error.retry_after} s."
            problem = Problem(429, "key_limit", detail, {"Retry-After": str(error.retry_after)})
            raise Refused(problem) from None


def credential(scope: Scope) -> bytes:
    """The key in a request's headers. Raises Refused (401) if there is none, or more than one."""
    authorization = [value for name, value in scope["headers"] if name == b"authorization"]
    api_keys = [value for name, value in scope["headers"] if name == b"x-api-key"]
    if len(authorization) > 1 or len(api_keys) > 1:
        raise _unauthorised(f"The key is given more than once. {HOW_TO_SEND}, once.")
    if authorization:
        scheme, _, key = authorization[0].partition(b" ")
        if scheme.lower() != b"bearer":
            raise _unauthorised(f"The header Authorization has another scheme than Bearer. {HOW_TO_SEND}.")
        api_keys.append(key.strip(b" "))
    if not api_keys:
        raise _unauthorised(f"This path needs a key. {HOW_TO_SEND}.")
    if any(each != api_keys[0] for each in api_keys):
        raise _unauthorised("The headers Authorization and X-API-Key hold different keys. Send one of them.")
    return api_keys[0]


def client(scope: Scope) -> str:
    """The client for which a request counts: its key, or without keys the part of its address that client_of keeps."""
    if key := scope["state"].get("key"):
        return f"key {key}"
    address = scope.get("client")
    return client_of(address[0]) if address else ""


def owner(scope: Scope) -> str:
    """The client to which an upload belongs: its key, or without keys its address."""
    if key := scope["state"].get("key"):
        return f"key {key}"
    address = scope.get("client")
    return f"address {address[0] if address else ''}"


def _unauthorised(detail: str) -> Refused:
    return Refused(Problem(401, "unauthorised", detail, {"WWW-Authenticate": "Bearer"}))


def _elsewhere(setting: str) -> Refused:
    return Refused(Problem(404, "unknown_path", f"This path is served on another port: {setting}."))
