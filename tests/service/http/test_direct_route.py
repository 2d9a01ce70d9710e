"""The routes' own handler and query parser give the same results as FastAPI's."""

from __future__ import annotations

import asyncio
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError

from service.http.direct_route import DirectRoute, parse_query
from service.http.problems import of
from service.http.schemas import DetectQuery, ProposalsQuery, RecentQuery


async def endpoint(request: Request, name: str, query: Annotated[DetectQuery, Query()]) -> Response:
    return Response(f"{request.method} {name} {query.model_dump_json()}")


async def on_error(_: Request, error: Exception) -> Response:
    return Response(str(of(error).document()), 422)


def application() -> FastAPI:
    app = FastAPI()
    for prefix, kind in (("/direct", DirectRoute), ("/fastapi", None)):
        router = APIRouter(route_class=kind) if kind else APIRouter()
        router.post(f"{prefix}/{{name}}")(endpoint)
        app.include_router(router)
    app.add_exception_handler(RequestValidationError, on_error)
    return app


QUERIES = [
    "",
    "score_threshold=0.5&label=a&label=b&timeout=2&timeout=3",
    "label",
    "label=",
    "model=",
    "proposals=1",
    "proposals=true&proposals=false",
    "max_proposals=007",
    "score_threshold=",
    "score_threshold=nan",
    "score_threshold=1e999",
    "score_threshold=0.5;label=3",
    "max_detections=1.5",
    "version=1&version=x",
    "priority=urgent",
    "nonsense=1&score_threshold=2&version=-1",
    "a%ff=1",
    f"{'x' * 300}=1",
    "&".join(f"p{number}=1" for number in range(1000)),
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query[:40])
def test_answers_and_problems_equal_those_of_fastapis_own_routes(query):
    async def ask() -> list[tuple[int, str]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application()), base_url="http://x") as client:
            responses = [await client.post(f"/{prefix}/a%20b?{query}") for prefix in ("direct", "fastapi")]
        return [(response.status_code, response.text) for response in responses]

    direct, fastapi = asyncio.run(ask())
    assert direct == fastapi
    assert direct[0] in (200, 422)


def test_the_documentation_equals_that_of_fastapis_own_routes():
    paths = application().openapi()["paths"]
    direct, fastapi = (paths[f"/{prefix}/{{name}}"]["post"] for prefix in ("direct", "fastapi"))
    assert direct | {"operationId": 0} == fastapi | {"operationId": 0}


def test_a_route_with_dependencies_is_refused_because_it_would_ignore_them():
    router = APIRouter(route_class=DirectRoute)
    with pytest.raises(TypeError, match="cannot have dependencies"):
        router.get("/", dependencies=[Depends(lambda: None)])(endpoint)


def test_a_repeated_query_gives_the_same_result_whether_it_is_cached_or_not():
    short = b"label=cat&label=dog&timeout=1.5&priority=bulk"
    long = b"&".join([b"label=cat"] * 100)  # 999 bytes, too long for the cache
    assert parse_query(DetectQuery, short) is parse_query(DetectQuery, short)
    assert parse_query(DetectQuery, long) == parse_query(DetectQuery, long)
    assert parse_query(DetectQuery, long).label == ["cat"] * 100


def test_equal_queries_of_different_routes_are_cached_separately():
    for kind in (ProposalsQuery, RecentQuery, DetectQuery):
        assert type(parse_query(kind, b"max_proposals=5")) is kind
