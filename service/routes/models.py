"""GET /models: what can be asked for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service import openapi
from service.engine import Engine
from service.routes.answers import runtime_of
from service.runtime import Runtime
from service.schemas import ModelAnswer, ModelsAnswer, to_json

router = APIRouter(tags=["models"])


class VersionQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(None, ge=0, description="default: the highest")


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
    responses={200: {"model": ModelAnswer}, **openapi.problems(404, 422, 503)},
)
async def get_model(request: Request, name: str, query: Annotated[VersionQuery, Query()]) -> Response:
    """Labels, canvases, metrics and hash: `model.json`, the versions there are, and what runs it."""
    runtime = runtime_of(request)
    engine = runtime.engine(name, query.version)
    return Response(to_json(describe(runtime, engine)), media_type="application/json")


def describe(runtime: Runtime, engine: Engine) -> dict[str, Any]:
    versions = sorted(runtime.engines[engine.card.name])
    return engine.card.model_dump(mode="json") | {"versions": versions, "provider": engine.provider}
