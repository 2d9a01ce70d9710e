"""GET /, GET /docs and GET /openapi.json: a page for trying the service in a browser, and the API's documentation."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from service.http.answers import JSON, to_json
from service.http.direct_route import DirectRoute

router = APIRouter(include_in_schema=False, route_class=DirectRoute)

# Each page is a single file that loads nothing from other servers, so it also works without internet access.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/")
async def index() -> Response:
    return page("index.html")


@router.get("/docs")
async def docs() -> Response:
    return page("docs.html")


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    return Response(to_json(request.app.openapi()), media_type=JSON)


def page(name: str) -> Response:
    return Response(html(name), media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY})


@cache
def html(name: str) -> bytes:
    return (files("service.http") / "page" / name).read_bytes()
