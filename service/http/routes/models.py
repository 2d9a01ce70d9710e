"""GET /models: describes the models that requests can name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.http import openapi
from service.http.answers import JSON, to_json
from service.http.direct_route import DirectRoute
from service.http.schemas import ModelAnswer, ModelsAnswer, NoQuery, VersionQuery
from service.models.catalogue import ServedModel
from service.runtime import Runtime

router = APIRouter(tags=["models"], route_class=DirectRoute)


@router.get(
    "/models", summary="All models", responses={200: {"model": ModelsAnswer}, **openapi.problems(422, 500, 503)}
)
async def list_models(request: Request, query: Annotated[NoQuery, Query()]) -> Response:  # noqa: ARG001  refuses any
    """Every served version of every model, and every version that is refused, with the reason."""
    runtime: Runtime = request.app.state.runtime
    if (error := runtime.readiness.not_ready()) and not runtime.readiness.loaded:
        raise error
    readiness = runtime.readiness
    default, served = readiness.default_model, readiness.models  # a refresh replaces both, so read both now
    answer = {
        "default": {"name": default, "version": max(served[default])} if default in served else None,
        "models": [describe(model, versions) for versions in served.values() for model in versions.values()],
        "refused": [{"model": place, "reason": reason} for place, reason in runtime.readiness.refused.items()],
    }
    return Response(to_json(answer), media_type=JSON)


@router.get(
    "/models/{name}",
    summary="One model",
    responses={200: {"model": ModelAnswer}, **openapi.problems(404, 422, 500, 503)},
)
async def get_model(request: Request, name: str, query: Annotated[VersionQuery, Query()]) -> Response:
    """The contents of `model.json`, the served versions, and the ONNX Runtime provider that runs the model."""
    runtime: Runtime = request.app.state.runtime
    model = runtime.readiness.model(name, query.version)
    versions = runtime.readiness.models.get(name, {model.card.version: model})
    return Response(to_json(describe(model, versions)), media_type=JSON)


def describe(model: ServedModel, versions: Iterable[int]) -> dict[str, Any]:
    return model.card.model_dump(mode="json") | {"versions": sorted(versions), "provider": model.provider}
