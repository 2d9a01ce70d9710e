"""What the head of a request must fulfil before a route sees it: HTTP version, expectation, path and method.

A path matches only as it is documented, byte for byte, but those of the API also with a slash at the end, as many
clients write them. Starlette's router decodes a path before it matches it, and its
patterns ignore a final newline. It would also match /metrics%0a and /%6detrics, which evade a proxy's rule for
/metrics.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.problems import Problem

# These match with a slash at the end too. The others do not: a proxy's rule for /metrics must not be evaded.
WITH_SLASH = ("/detect", "/proposals", "/models")
# A request line with another version than the first two is refused. The names of the other two have no minor number:
# only a server that really speaks HTTP/2 or HTTP/3 reports them.
VERSIONS = frozenset(("1.0", "1.1", "2", "3"))

_PARAMETER = re.compile(r"\\{\w+\\}")
# A segment of a path (RFC 3986, section 3.3).
_SEGMENT = r"(?P<segment>(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)"
# Escapes of unreserved characters, which mean the same as the characters (RFC 3986, section 2.3): only those match.
_NEEDLESS_ESCAPE = re.compile(rb"(?i)%(?:2[de]|3[0-9]|4[1-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9ae])")
# A host, with a port if there is one (RFC 3986, section 3.2.2). It may be empty (RFC 9112, section 3.2).
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f/]")  # and the slash, which separates segments


class _Place(NamedTuple):
    """A path of the application, with everything that a 405 needs."""

    methods: frozenset[str]
    allow: str
    route: BaseRoute


class RequestHead:
    """Passes requests on to `app` if their head is in order, and has `answer` answer the others.

    routes  the routes of `app`; a path has at most one parameter
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Iterable[BaseRoute],
        answer: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._answer = answer
        places = _places(routes)
        self._fixed = {path.encode(): place for path, place in places.items() if "{" not in path}
        self._patterns = {_pattern(path): place for path, place in places.items() if "{" in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (fault := self._fault(scope)):
            response = await self._answer(Request(scope), fault)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _fault(self, scope: Scope) -> Exception | None:
        if scope["http_version"] not in VERSIONS:
            detail = "The service speaks HTTP/1.1 and HTTP/1.0. Send the request in one of these versions."
            return Problem(505, "http_version", detail, {"Connection": "close"})
        for name, value in scope["headers"]:
            # An HTTP/1.0 client cannot expect anything (RFC 9110, section 10.1.1).
            if name == b"expect" and value.lower() != b"100-continue" and scope["http_version"] != "1.0":
                detail = "The service supports no expectation other than 100-continue. Send the request without Expect."
                return Problem(417, "expectation", detail)
            if name == b"host" and not _HOST.fullmatch(value):
                detail = "Host must be the name or the address of a server, with a port if there is one."
                return Problem(400, "bad_host", detail, {"Connection": "close"})
        if scope["raw_path"].endswith(b"/"):
            _remove_slash(scope)
        place = self._fixed.get(scope["raw_path"]) or self._with_parameter(scope["raw_path"])
        if not place:
            return HTTPException(404)
        if scope["method"] not in place.methods:
            scope["route"] = place.route  # the metrics count the request under this path
            return HTTPException(405, headers={"Allow": place.allow})
        return None

    def _with_parameter(self, path: bytes) -> _Place | None:
        for pattern, place in self._patterns.items():
            found = pattern.fullmatch(path)
            if found and _is_plain(found["segment"]):
                return place
        return None


def _remove_slash(scope: Scope) -> None:
    """Removes one slash at the end of a path of the API, for the routes and the metrics."""
    raw, path = scope["raw_path"][:-1], scope["path"].removesuffix("/")
    if raw.decode("latin-1") in WITH_SLASH or raw.startswith(b"/models/"):
        scope["raw_path"], scope["path"] = raw, path


def _places(routes: Iterable[BaseRoute]) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    for route in routes:
        assert isinstance(route, Route)
        methods = frozenset(route.methods or ())
        if route.path in places:
            methods |= places[route.path].methods
        allow = methods | ({"HEAD"} if "GET" in methods else set())
        places[route.path] = _Place(methods, ", ".join(sorted(allow)), route)
    return places


def _pattern(path: str) -> re.Pattern[bytes]:
    return re.compile(_PARAMETER.sub(lambda _: _SEGMENT, re.escape(path)).encode())


def _is_plain(segment: bytes) -> bool:
    """Whether the segment is UTF-8 without control characters, slashes and needless escapes, and neither . nor .."""
    if _NEEDLESS_ESCAPE.search(segment) or segment in (b".", b".."):
        return False
    try:
        return not _CONTROL.search(unquote_to_bytes(segment).decode())
    except UnicodeDecodeError:
        return False
