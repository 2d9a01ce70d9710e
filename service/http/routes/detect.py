"""POST /detect: what is in an image, and where."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial

from fastapi import APIRouter, Request, Response

from service.engine.model import Card
from service.http import npz, openapi
from service.http.problems import Problem
from service.http.routes.answers import JSON, array_answer, encoded_answer, preferred, runtime_of
from service.http.schemas import DetectAnswer, DetectQuery, detections, from_query
from service.images import drawing

router = APIRouter(tags=["detection"])

IMAGES = ("image/png", "image/jpeg")
OFFERED = (JSON, npz.MEDIA_TYPE, *IMAGES)


@router.post(
    "/detect",
    summary="Detect objects in an image",
    openapi_extra=openapi.upload("detect") | openapi.query(DetectQuery),
    responses={
        200: {
            "model": DetectAnswer,
            "content": dict.fromkeys(IMAGES, openapi.IMAGE) | openapi.NPZ,
            "headers": openapi.SERVER_TIMING,
        },
        **openapi.problems(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    },
)
async def detect(request: Request) -> Response:
    """Boxes, scores and labels, best first, in pixels of the upright image.

    With `Accept: image/png` or `image/jpeg` the answer is the image with the boxes drawn, with
    `Accept: application/x-npz` it is for NumPy.
    """
    query = from_query(DetectQuery, request.scope["query_string"])
    runtime = runtime_of(request)
    engine = runtime.engine(query.model, query.version)
    check_labels(query.label, engine.card)
    terms = runtime.terms(query.timeout, query.priority)
    with runtime.admitted(terms):
        outcome = await runtime.infer(request, engine, False, terms)
        answer, labels = detections(outcome.seen, engine.card, outcome.result, query)
        for label, times in Counter(labels).items():
            runtime.metrics.detections.labels(engine.card.name, str(engine.card.version), label).inc(times)
        runtime.metrics.detections_a_picture.observe(len(labels))
        media_type = preferred(request.headers.get("accept", ""), OFFERED)
        if media_type not in IMAGES:
            return array_answer(runtime, outcome.seen, engine.card, answer, media_type)
        began = time.perf_counter()
        draw = partial(drawing.draw, outcome.data, runtime.settings.max_pixels, answer, engine.card.labels, media_type)
        image = await runtime.drawn(outcome, terms, draw)
        return encoded_answer(runtime, outcome.seen, image, media_type, began)


def check_labels(wanted: list[str], card: Card) -> None:
    """Raises Problem (422) for a label that the model does not know: it would silently find nothing."""
    if not set(wanted) <= set(card.labels):
        raise Problem(422, "parameter", f"label: the model does not know it. It knows {', '.join(card.labels)}.")
