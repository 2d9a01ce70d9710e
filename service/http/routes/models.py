"""GET /models: describes the models that requests can name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from service.http import openapi
from service.http.answers import JSON, to_json
from service.http.direct_route import DirectRoute
from service.http.schemas import ModelAnswer, ModelsAnswer, NoQuery, VersionQuery
from service.models.choice import Choices
from service.models.refusals import first
from service.models.served_model import ServedModel
from service.runtime import Runtime

router = APIRouter(tags=["models"], route_class=DirectRoute)

LARGEST_ANSWER = 4 * 2**20  # bytes of the cards in one answer


@router.get(
    "/models", summary="All models", responses={200: {"model": ModelsAnswer}, **openapi.problems(422, 500, 503)}
)
async def list_models(request: Request, query: Annotated[NoQuery, Query()]) -> Response:  # noqa: ARG001  refuses any
    """The served versions of every model, the default, and the first versions that are refused, with the reasons."""
    runtime: Runtime = request.app.state.runtime
    readiness = runtime.readiness
    if (error := readiness.not_ready()) and not readiness.loaded:
        raise error
    choices = readiness.choices  # a refresh replaces them, so they are read once
    return Response(answer(choices, readiness.store_fault), media_type=JSON)


def answer(choices: Choices, store_fault: str | None) -> bytes:
    """The body of `GET /models`, of bounded size however many versions the store holds."""
    cards, size = [], 0
    for versions in choices.served.values():
        for model in versions.values():
            card = to_json(describe(model, versions))
            size += len(card)
            if size <= LARGEST_ANSWER:
                cards.append(orjson.Fragment(card))
    document: dict[str, Any] = {
        "default": default(choices),
        "models": cards,
        "models_total": sum(map(len, choices.served.values())),
        "refused": [{"model": place, "reason": choices.refused[place]} for place in first(choices.refused)],
        "refused_total": len(choices.refused),
        "arriving": [{"model": place, "state": choices.arriving[place]} for place in first(choices.arriving)],
        "arriving_total": len(choices.arriving),
        "pins": {name: pin if isinstance(pin := choices.pins[name], int) else None for name in first(choices.pins)},
        "store": store_fault,
    }
    return to_json(document)


def default(choices: Choices) -> dict[str, Any] | None:
    """The default model and its version, or why it is not served; None if there is none."""
    if error := choices.default_missing():
        name, version = choices.default or (None, None)
        return {"name": name, "version": version, "reason": str(error)}
    if choices.default is None:
        return None
    card = choices.choose(None, None).card
    return {"name": card.name, "version": card.version}


@router.get(
    "/models/{name}",
    summary="One model",
    responses={200: {"model": ModelAnswer}, **openapi.problems(404, 422, 500, 503)},
)
async def get_model(request: Request, name: str, query: Annotated[VersionQuery, Query()]) -> Response:
    """The contents of `model.json`, the served versions, and the ONNX Runtime provider that runs the model."""
    runtime: Runtime = request.app.state.runtime
    model = runtime.readiness.model(name, query.version)
    versions = runtime.readiness.choices.served.get(name, {model.card.version: model})
    return Response(to_json(describe(model, versions)), media_type=JSON)


def describe(model: ServedModel, versions: Iterable[int]) -> dict[str, Any]:
    return model.card.model_dump(mode="json") | {"versions": sorted(versions), "provider": model.provider}
