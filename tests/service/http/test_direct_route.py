"""The routes' own handler gives the same results as FastAPI's. test_query.py tests how a query is read."""

from __future__ import annotations

import asyncio
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response

from service.http.direct_route import DirectRoute
from service.http.schemas import DetectQuery


async def endpoint(request: Request, name: str, query: Annotated[DetectQuery, Query()]) -> Response:
    return Response(f"{request.method} {name} {query.model_dump_json()}")


def application() -> FastAPI:
    app = FastAPI()
    for prefix, kind in (("/direct", DirectRoute), ("/fastapi", None)):
        router = APIRouter(route_class=kind) if kind else APIRouter()
        router.post(f"{prefix}/{{name}}")(endpoint)
        app.include_router(router)
    return app


def test_an_endpoint_gets_the_request_the_path_and_the_query_as_from_fastapis_own_route():
    query = "score_threshold=0.5&label=a&label=b&timeout=2&proposals=true"

    async def ask() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application()), base_url="http://x") as client:
            return [(await client.post(f"/{prefix}/a%20b?{query}")).text for prefix in ("direct", "fastapi")]

    direct, fastapi = asyncio.run(ask())
    assert direct == fastapi
    assert direct.startswith("POST a b {")


def test_the_documentation_equals_that_of_fastapis_own_routes():
    paths = application().openapi()["paths"]
    direct, fastapi = (paths[f"/{prefix}/{{name}}"]["post"] for prefix in ("direct", "fastapi"))
    assert direct | {"operationId": 0} == fastapi | {"operationId": 0}


def test_a_route_with_dependencies_is_refused_because_it_would_ignore_them():
    router = APIRouter(route_class=DirectRoute)
    with pytest.raises(TypeError, match="cannot have dependencies"):
        router.get("/", dependencies=[Depends(lambda: None)])(endpoint)
