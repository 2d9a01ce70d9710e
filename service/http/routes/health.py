"""GET /healthz, GET /readyz and GET /metrics, for operating the service."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.http import openapi
from service.http.answers import JSON, to_json
from service.http.direct_route import DirectRoute
from service.http.schemas import ReadyAnswer
from service.models.refusals import first
from service.runtime import Runtime
from service.telemetry.metrics import CONTENT_TYPE

router = APIRouter(tags=["operation"], route_class=DirectRoute)

MOST_SERVED = 1000  # versions that /readyz names


@router.get("/healthz", summary="Liveness")
async def healthz() -> Response:
    """Answers 200 as long as the process can answer."""
    return Response(b'{"status":"alive"}', media_type=JSON)


@router.get("/readyz", summary="Readiness", responses={200: {"model": ReadyAnswer}, **openapi.problems(503)})
async def readyz(request: Request) -> Response:
    """Answers 200 once the default model is warmed up, and until an engine fails for good or the service stops."""
    runtime: Runtime = request.app.state.runtime
    readiness = runtime.readiness
    if error := readiness.not_ready():
        raise error
    choices = readiness.choices
    served = [f"{name}/{version}" for name, versions in choices.served.items() for version in versions]
    unfixed = [
        {"model": f"{name}/{version}", "reason": model.shapes_fault}
        for name, versions in choices.served.items()
        for version, model in versions.items()
        if model.shapes_fault
    ]
    answer = {
        "status": "ready",
        "provider": runtime.provider,
        "why_cpu": runtime.why_cpu or None,
        "gpus": [
            {
                "device": report.device,
                **report.facts(),
                "reason": f"{report.fault.reason}; {report.fault.remedy}" if report.fault else None,
            }
            for report in runtime.gpus
        ],
        "models": served[:MOST_SERVED],
        "refused": [{"model": place, "reason": choices.refused[place]} for place in first(choices.refused)],
        "refused_total": len(choices.refused),
        "store": readiness.store_fault,
        "without_fixed_shapes": unfixed[:MOST_SERVED],
    }
    return Response(to_json(answer), media_type=JSON)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    runtime: Runtime = request.app.state.runtime
    return Response(runtime.metrics.scrape(), headers={"Content-Type": CONTENT_TYPE})
