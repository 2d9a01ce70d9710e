"""GET /models: what can be asked for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service import openapi
from service.catalogue import ServedModel
from service.routes.answers import runtime_of
from service.runtime import Runtime
from service.schemas import ModelAnswer, ModelsAnswer, VersionQuery, from_query, to_json

router = APIRouter(tags=["models"])


@router.get("/models", summary="All models", responses={200: {"model": ModelsAnswer}, **openapi.problems(503)})
async def list_models(request: Request) -> Response:
    """Every model and version that is served, and every directory that is refused, with the reason."""
    runtime = runtime_of(request)
    if (problem := runtime.not_ready()) and not runtime.loaded:
        raise problem
    default = runtime.default_model
    answer = {
        "default": {"name": default, "version": max(runtime.engines[default])} if default else None,
        "models": [describe(runtime, engine) for versions in runtime.engines.values() for engine in versions.values()],
        "refused": [{"model": model, "reason": reason} for model, reason in runtime.refused.items()],
    }
    return Response(to_json(answer), media_type="application/json")


@router.get(
    "/models/{name}",
    summary="One model",
    openapi_extra=openapi.query(VersionQuery),
    responses={200: {"model": ModelAnswer}, **openapi.problems(404, 422, 503)},
)
async def get_model(request: Request, name: str) -> Response:
    """Labels, canvases, metrics and hash: `model.json`, the versions there are, and what runs it."""
    query = from_query(VersionQuery, request.scope["query_string"])
    runtime = runtime_of(request)
    engine = runtime.engine(name, query.version)
    return Response(to_json(describe(runtime, engine)), media_type="application/json")


def describe(runtime: Runtime, engine: ServedModel) -> dict[str, Any]:
    versions = sorted(runtime.engines[engine.card.name])
    return engine.card.model_dump(mode="json") | {"versions": versions, "provider": engine.provider}
