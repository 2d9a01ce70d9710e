"""OpenTelemetry traces with one span per request and one per stage, if environment variables set a destination.

Without tracing, the SDK is not imported and the application is not wrapped. With tracing, a layer around the
application creates the spans from the request and from the response's Server-Timing header, so the rest of the service
needs no code for them. FastAPI's own spans would not show the stages.

The SDK's own variables (OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, …) apply.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry.metrics import METHODS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
STAGES = ("read", "queue", "decode", "inference", "encode")  # in the order of a request
CLIENT_GONE = 499
FLUSH_SECONDS = 3.0


def provider_from_environment() -> TracerProvider | None:
    """The provider that sends spans (OTLP over HTTP), or None if no variable switches tracing on.

    Raises ValueError with a one-line message if tracing is switched on but cannot work.
    """
    variable = _variable_that_switches_on()
    if variable is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError(
            f"{variable} is set, but OpenTelemetry is not installed; install it with pip install '.[otel]', "
            "or set OTEL_TRACES_EXPORTER=none"
        ) from error
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # the SDK's default name
        resource = resource.merge(Resource({SERVICE_NAME: "faster-rcnn-service"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _variable_that_switches_on() -> str | None:
    """The environment variable that switches tracing on, or None. Raises ValueError for an unknown exporter."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    if exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if exporter not in ("", "otlp"):
        raise ValueError(f"OTEL_TRACES_EXPORTER={exporter!r}: only otlp is supported; set otlp, or none for no traces")
    return next((name for name in (*ENDPOINTS, "OTEL_TRACES_EXPORTER") if os.environ.get(name)), None)


class Traced:
    """Records a server span for each request to `app`. Unsent spans are sent when the application shuts down."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._provider = provider
        self._tracer = provider.get_tracer("service")
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._flushing(send))
            return
        began = time.time_ns()
        response: list[Message] = []

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                response.append(message)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._record(scope, response, began, time.time_ns())

    def _flushing(self, send: Send) -> Send:
        async def flushing(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                # the exporter retries for OTEL_EXPORTER_OTLP_TIMEOUT, 10 s by default, and would delay the exit
                flush = threading.Thread(target=self._provider.shutdown, daemon=True)
                flush.start()
                await asyncio.to_thread(flush.join, FLUSH_SECONDS)
            await send(message)

        return flushing

    def _record(self, scope: Scope, response: list[Message], began: int, ended: int) -> None:
        """Records the spans of a finished request and of its stages. `began` and `ended` are in ns since 1970."""
        kind = self._trace.SpanKind
        request_headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        state = scope.get("state", {})
        route = state.get("route", "unmatched")
        status = response[0]["status"] if response else CLIENT_GONE
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"  # OpenTelemetry's name for it
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "request_id": state.get("request_id", ""),
        }
        span = self._tracer.start_span(
            f"{method} {route}", self._propagator.extract(request_headers), kind.SERVER, attributes, start_time=began
        )
        if span.is_recording():
            if status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
            inside = self._trace.set_span_in_context(span)
            for stage, start, end in _stages(response[0]["headers"] if response else (), began):
                self._tracer.start_span(stage, inside, kind.INTERNAL, start_time=start).end(end)
        span.end(ended)


def _stages(headers: Iterable[tuple[bytes, bytes]], began: int) -> Iterator[tuple[str, int, int]]:
    """The stages in a response's Server-Timing: name, start and end (ns).

    They follow one another from `began` without gaps. All the waiting of a request is one span.
    """
    timing = next((value.decode("latin-1") for name, value in headers if name == b"server-timing"), "")
    parts = (part.strip().partition(";dur=") for part in timing.split(","))
    milliseconds = {name: float(duration) for name, _, duration in parts if duration}
    for stage in STAGES:
        if stage in milliseconds:
            ended = began + round(milliseconds[stage] * 1e6)
            yield stage, began, ended
            began = ended
