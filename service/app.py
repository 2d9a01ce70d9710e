"""The application: its routes, its lifespan, and its error handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import orjson
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from service import descriptors
from service.http import openapi, problems
from service.http.cors import Cors
from service.http.middleware import CLIENT_GONE, Edge
from service.http.request_head import RequestHead
from service.http.routes import detect, health, models, page, proposals
from service.http.traffic import Limits, Traffic
from service.images import formats
from service.runtime import ClientGoneError, Runtime
from service.settings import Settings

ROUTERS = (detect.router, proposals.router, models.router, health.router, page.router)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. It loads its models in the background; `/readyz` answers 200 once they are loaded.

    Raises KeysFileError if API_KEYS_FILE cannot be used, MissingLibraryError if one of IMAGE_FORMATS needs a library.
    """
    settings = settings or Settings()
    formats.accept(formats.parse(settings.image_formats))
    runtime = Runtime(settings)
    connections = descriptors.for_connections(descriptors.raise_limit(), settings.max_connections)
    traffic = Traffic(
        Limits(
            connections,
            settings.max_uploads,
            settings.max_uploads_per_client,
            settings.min_transfer_rate,
            settings.receive_timeout,
        ),
        runtime.metrics,
        runtime.memory,
    )
    runtime.admission.make_room = traffic.responses.drop_slowest
    runtime.artists.room = traffic.responses.room

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(each) for each in (runtime.start(), runtime.watch_keys(), traffic.watch())]
        yield
        for task in tasks:
            task.cancel()
        traffic.connections.close_all()
        runtime.stop()

    app = FastAPI(
        title="Faster R-CNN",
        description="Detects objects in images, and returns the region proposals from which detections are made.\n\n"
        "A parameter that is unknown, empty, or given more than once (except label) is an error. Numbers are written "
        "as in 1, 0.5 or 5e-1, flags as true or false.",
        version=_version(),
        lifespan=lifespan,
        openapi_url=None,  # page.py serves the document; FastAPI's own pages load their scripts from the internet
        redirect_slashes=False,  # only the documented paths exist, and a redirect would repeat a forged Host
        telemetry={"tracing": False, "metrics": False, "logs": False},  # avoids a look-up at every request
    )
    app.state.runtime = runtime
    app.state.traffic = traffic
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]
    app.add_middleware(RequestHead, routes=[route for router in ROUTERS for route in router.routes], answer=_problem)
    app.add_middleware(Edge, runtime=runtime)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins.split(","))
    for error in problems.ANSWERED:
        app.add_exception_handler(error, _problem)
    for gone in (ClientDisconnect, ClientGoneError):  # during its upload, and while it waited
        app.add_exception_handler(gone, _client_gone)
    for router in ROUTERS:
        app.include_router(router)
    return app


async def _problem(request: Request, error: Exception) -> Response:
    problem = problems.of(error)
    if problem.status < 500 or problem.status in (503, 505):
        runtime: Runtime = request.app.state.runtime
        runtime.metrics.rejected.labels(problem.reason).inc()
    document = problem.document(request.state.request_id)
    return Response(orjson.dumps(document), problem.status, problem.headers, "application/problem+json")


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def _version() -> str:
    try:
        return version("faster-rcnn-service")
    except PackageNotFoundError:  # the code runs from a checkout that is not installed
        return "0"
