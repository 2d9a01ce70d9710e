"""POST /detect: what is in a picture, and where."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from service import drawing, openapi
from service.problems import Problem
from service.routes.answers import encoded_answer, json_answer, runtime_of
from service.schemas import DetectAnswer, DetectQuery, detections, from_query
from service.store import Card

router = APIRouter(tags=["detection"])

PICTURES = ("image/png", "image/jpeg")


@router.post(
    "/detect",
    summary="Detect objects in a picture",
    openapi_extra=openapi.upload("detect") | openapi.query(DetectQuery),
    responses={
        200: {"model": DetectAnswer, "content": dict.fromkeys(PICTURES, openapi.PICTURE)},
        **openapi.problems(400, 404, 408, 413, 415, 422, 429, 503, 504),
    },
)
async def detect(request: Request) -> Response:
    """Boxes, scores and labels, best first, in pixels of the upright picture.

    With `Accept: image/png` or `image/jpeg` the answer is the picture with the boxes drawn.
    """
    query = from_query(DetectQuery, request.query_params)
    runtime = runtime_of(request)
    engine = runtime.engine(query.model, query.version)
    check_labels(query.label, engine.card)
    terms = runtime.terms()
    with runtime.admitted(terms):
        outcome = await runtime.infer(request, engine, False, terms)
        answer, labels = detections(outcome.seen, engine.card, outcome.result, query)
        for label in labels:
            runtime.metrics.detections.labels(engine.card.name, str(engine.card.version), label).inc()
        runtime.metrics.detections_a_picture.observe(len(labels))
        media_type = preferred_picture(request.headers.get("accept", ""))
        if media_type is None:
            return json_answer(runtime, outcome.seen, answer)
        began = time.perf_counter()
        picture = await runtime.in_thread(
            drawing.draw, outcome.data, runtime.settings.max_pixels, answer, engine.card.labels, media_type
        )
        return encoded_answer(runtime, outcome.seen, picture, media_type, began)


def check_labels(wanted: list[str], card: Card) -> None:
    """Raises Problem (422) for a label that the model does not know: it would silently find nothing."""
    if set(wanted) - set(card.labels):
        raise Problem(422, "parameter", f"label: the model does not know it. It knows {', '.join(card.labels)}.")


def preferred_picture(accept: str) -> str | None:
    """The kind of picture that an Accept header asks for before JSON, or None for JSON."""
    best, chosen = 0.0, None
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            weight = 0.0
        kind = "image/png" if name == "image/*" else name if name in PICTURES else None
        # what is named first wins among equals; a wildcard for everything means JSON
        if weight > best and (kind or name in ("application/json", "application/*", "*/*")):
            best, chosen = weight, kind
    return chosen
