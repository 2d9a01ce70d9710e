"""Lets pages of other origins call the service from a browser (Fetch standard, section 3.3), if CORS_ORIGINS is set.

It is the outermost layer: browsers send a preflight without a key, and a page may read an error only if it has the same
headers as any other answer.
"""

from __future__ import annotations

from collections.abc import Collection

import orjson
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from service.http.problems import Problem
from service.http.request_ids import new_id

METHODS = ("GET", "HEAD", "POST")
HEADERS = ("Authorization", "X-API-Key", "X-Request-ID")  # Starlette adds Accept and Content-Type
# of an answer
READABLE = ("X-Request-ID", "Image-Id", "Image-Warnings", "Answer-Truncated", "Server-Timing", "Retry-After")
FAULT = Problem(
    400,
    "cors",
    "The service does not allow this origin, method or header from a page in a browser. The operator lists origins in "
    f"CORS_ORIGINS; methods are {', '.join(METHODS)}, headers {', '.join(HEADERS)}, Accept and Content-Type.",
)


class Cors(CORSMiddleware):
    """Starlette's middleware, whose refusals of a preflight are problem documents."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(app, origins, METHODS, HEADERS, expose_headers=READABLE)

    def preflight_response(self, request_headers: Headers) -> Response:
        """204 without a body, or 400."""
        checked = super().preflight_response(request_headers)
        request_id = new_id()
        kept = {name: value for name, value in checked.headers.items() if not name.startswith("content-")}
        headers = kept | {"X-Request-ID": request_id}
        if checked.status_code == 200:
            return Response(status_code=204, headers=headers)
        return Response(orjson.dumps(FAULT.document(request_id)), 400, headers, "application/problem+json")
