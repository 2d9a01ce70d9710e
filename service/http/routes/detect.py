"""POST /detect: finds the objects in an image."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.engine.card import Card
from service.http import answers, npz, openapi, uploads
from service.http.connections import until_sent, when_gone
from service.http.direct_route import DirectRoute
from service.http.gate import client, owner
from service.http.problems import Problem
from service.http.schemas import DetectAnswer, DetectQuery
from service.images.drawing import Drawing
from service.runtime import Runtime
from service.telemetry.metrics import Metrics

router = APIRouter(tags=["detection"], route_class=DirectRoute)

IMAGES = ("image/png", "image/jpeg")
OFFERED = (answers.JSON, npz.MEDIA_TYPE, *IMAGES)


@router.post(
    "/detect",
    summary="Detect objects in an image",
    openapi_extra=openapi.upload("detect"),
    responses={
        200: {
            "model": DetectAnswer,
            "content": dict.fromkeys(IMAGES, openapi.IMAGE) | openapi.NPZ,
            "headers": openapi.IMAGE_ID | openapi.SERVER_TIMING | openapi.IMAGE_WARNINGS | openapi.ANSWER_TRUNCATED,
        },
        **openapi.problems(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    },
)
async def detect(request: Request, query: Annotated[DetectQuery, Query()]) -> Response:
    """Boxes, scores and labels, best first, in pixels of the upright image.

    With `Accept: image/png` or `image/jpeg` the answer is the image with the boxes drawn. With
    `Accept: application/x-npz` it is a file for NumPy.
    """
    runtime: Runtime = request.app.state.runtime
    model = runtime.readiness.model(query.model, query.version)
    card, metrics, max_pixels = model.card, runtime.metrics, runtime.settings.max_pixels
    check_labels(query.label, card)
    media_type = answers.preferred(",".join(request.headers.getlist("accept")), OFFERED)
    # A drawn image takes longer to make and to send than all the rest, and is looked at by a person.
    bulk = query.priority == "bulk" or media_type in IMAGES
    examined = runtime.admission.examine(query.timeout, bulk, client(request.scope))
    gone = partial(when_gone, request)
    with model.in_use():
        data = await uploads.read(request, runtime.settings, request.app.state.traffic)
        admitted = until_sent(request).enter_context(runtime.admission.admit(examined, len(data)))
        inference = await runtime.infer(data, model, False, admitted, gone, owner(request.scope), strict=query.strict)
        answer = answers.detections(inference, card, query)
        count(answer["labels"], card, metrics)
        if media_type not in IMAGES:
            return answers.response(answer, inference, card, media_type, metrics)
        began = time.perf_counter()
        drawing = Drawing(data, max_pixels, answer, card.labels, media_type, card.white)
        drawn = await runtime.drawn(inference, admitted, drawing, gone)
        return answers.encoded_response(drawn, answer, inference, media_type, began, metrics)


def check_labels(wanted: list[str], card: Card) -> None:
    """Raises Problem (422) for a label that the model does not have, which would silently match nothing."""
    if not set(wanted) <= set(card.labels):
        raise Problem(422, "parameter", f"label: the model has no such label. Its labels: {', '.join(card.labels)}.")


def count(labels: list[str], card: Card, metrics: Metrics) -> None:
    for label, times in Counter(labels).items():
        metrics.detections.labels(card.name, str(card.version), label).inc(times)
    metrics.detections_per_image.observe(len(labels))
