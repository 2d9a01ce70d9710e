"""GET /: the page for trying the service in a browser."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)

# The page is one file and asks nobody but us.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'"
)


@router.get("/")
async def page() -> Response:
    return Response(html(), media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY})


@cache
def html() -> bytes:
    return (files("service") / "page" / "index.html").read_bytes()
