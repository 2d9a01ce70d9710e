"""The application: routes, lifespan, and every error as a problem document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http import openapi
from service.http.middleware import Edge
from service.http.problems import Problem
from service.http.routes import detect, health, models, page, proposals
from service.http.routes.answers import runtime_of
from service.runtime import Runtime
from service.settings import Settings

CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody is left to read it, but the metrics count it


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Models are loaded in the background once it runs; `/readyz` says when they are."""
    runtime = Runtime(settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(runtime.start())
        yield
        loading.cancel()
        runtime.stop()

    app = FastAPI(
        title="Faster R-CNN",
        description="Objects in images: detections, and the region proposals behind them.",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from the internet
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # looks for a provider at every request
    )
    app.state.runtime = runtime
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]
    hot = {"/detect": straight(detect.detect), "/proposals": straight(proposals.post_proposals)}
    app.add_middleware(Edge, runtime=runtime, straight=hot)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(ClientDisconnect, _nobody)
    for routes in (detect, proposals, models, health, page):
        app.include_router(routes.router)
    return app


def straight(handler: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """A route's handler as an application of its own.

    The router, FastAPI and their layers do nothing for the routes that carry the load, and cost the event loop as much
    as the rest of a request. The same handlers are declared to FastAPI too: for the documentation, and for all that is
    asked of their paths with another method.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except Problem as problem:
            response = await _problem(request, problem)
        except ClientDisconnect as gone:
            response = await _nobody(request, gone)
        await response(scope, receive, send)

    return application


async def _problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    if problem.status < 500 or problem.status == 503:
        runtime_of(request).metrics.rejected.labels(problem.reason).inc()
    document = problem.document(request.state.request_id)
    return Response(orjson.dumps(document), problem.status, problem.headers, "application/problem+json")


async def _http_problem(request: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    details = {
        404: "There is nothing at this path. GET /docs lists what there is.",
        405: f"This path does not take the method. It takes {(error.headers or {}).get('Allow', 'others')}.",
    }
    detail = details.get(error.status_code, str(error.detail))
    reason = {404: "unknown_path", 405: "method"}.get(error.status_code, "http")
    return await _problem(request, Problem(error.status_code, reason, detail, error.headers))


async def _nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _version() -> str:
    try:
        return version("faster-rcnn-service")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
