"""GET /models: what can be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request, Response

from service.http import openapi
from service.http.routes.answers import runtime_of
from service.http.schemas import ModelAnswer, ModelsAnswer, VersionQuery, from_query, to_json
from service.models.catalogue import ServedModel

router = APIRouter(tags=["models"])


@router.get("/models", summary="All models", responses={200: {"model": ModelsAnswer}, **openapi.problems(500, 503)})
async def list_models(request: Request) -> Response:
    """Every model and version that is served, and every directory that is refused, with the reason."""
    runtime = runtime_of(request)
    if (problem := runtime.not_ready()) and not runtime.loaded:
        raise problem
    default, served = runtime.default_model, runtime.engines  # of one moment: both are replaced as a whole
    answer = {
        "default": {"name": default, "version": max(served[default])} if default in served else None,
        "models": [describe(versions, engine) for versions in served.values() for engine in versions.values()],
        "refused": [{"model": model, "reason": reason} for model, reason in runtime.refused.items()],
    }
    return Response(to_json(answer), media_type="application/json")


@router.get(
    "/models/{name}",
    summary="One model",
    openapi_extra=openapi.query(VersionQuery),
    responses={200: {"model": ModelAnswer}, **openapi.problems(404, 422, 500, 503)},
)
async def get_model(request: Request, name: str) -> Response:
    """Labels, canvases, metrics and hash: `model.json`, the versions there are, and what runs it."""
    query = from_query(VersionQuery, request.scope["query_string"])
    runtime = runtime_of(request)
    engine = runtime.engine(name, query.version)
    versions = runtime.engines.get(name, {engine.card.version: engine})
    return Response(to_json(describe(versions, engine)), media_type="application/json")


def describe(versions: Iterable[int], engine: ServedModel) -> dict[str, Any]:
    return engine.card.model_dump(mode="json") | {"versions": sorted(versions), "provider": engine.provider}
