"""GET /healthz, GET /readyz, GET /metrics: for those who run the service."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.http import openapi
from service.http.routes.answers import runtime_of
from service.http.schemas import ReadyAnswer, to_json
from service.telemetry.metrics import CONTENT_TYPE

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Alive")
async def healthz() -> Response:
    """200 as long as the process answers at all."""
    return Response(b'{"status":"alive"}', media_type="application/json")


@router.get("/readyz", summary="Able to answer", responses={200: {"model": ReadyAnswer}, **openapi.problems(503)})
async def readyz(request: Request) -> Response:
    """200 once a model is loaded and warmed up, until the engine fails for good or the service shuts down."""
    runtime = runtime_of(request)
    if problem := runtime.not_ready():
        raise problem
    answer = {
        "status": "ready",
        "provider": runtime.provider,
        "models": [f"{name}/{version}" for name, versions in runtime.engines.items() for version in versions],
        "refused": [{"model": model, "reason": reason} for model, reason in runtime.refused.items()],
    }
    return Response(to_json(answer), media_type="application/json")


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    return Response(runtime_of(request).metrics.scrape(), headers={"Content-Type": CONTENT_TYPE})
