"""GET and POST /proposals: finds region proposals without running the RoI head."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.http import answers, npz, openapi, uploads
from service.http.connections import until_sent, when_gone
from service.http.direct_route import DirectRoute
from service.http.gate import client, owner
from service.http.problems import Problem
from service.http.schemas import ProposalsAnswer, ProposalsQuery, RecentQuery
from service.http.traffic import Traffic
from service.runtime import Runtime

router = APIRouter(tags=["proposals"], route_class=DirectRoute)

OFFERED = (answers.JSON, npz.MEDIA_TYPE)


@router.post(
    "/proposals",
    summary="Region proposals of an image",
    openapi_extra=openapi.upload("proposals"),
    responses={
        200: {
            "model": ProposalsAnswer,
            "content": openapi.NPZ,
            "headers": openapi.IMAGE_ID | openapi.SERVER_TIMING | openapi.IMAGE_WARNINGS | openapi.ANSWER_TRUNCATED,
        },
        **openapi.problems(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    },
)
async def post_proposals(request: Request, query: Annotated[ProposalsQuery, Query()]) -> Response:
    """The same numbers as `proposals` in the answer of `/detect?proposals=true`."""
    return await propose(request, query)


@router.get(
    "/proposals",
    summary="Region proposals of a recent upload",
    responses={
        200: {
            "model": ProposalsAnswer,
            "content": openapi.NPZ,
            "headers": openapi.IMAGE_ID | openapi.SERVER_TIMING | openapi.IMAGE_WARNINGS | openapi.ANSWER_TRUNCATED,
        },
        **openapi.problems(400, 404, 422, 429, 500, 503, 504),
    },
)
async def get_proposals(request: Request, query: Annotated[RecentQuery, Query()]) -> Response:
    """Uses the `image.id` of a recent answer. A GET request that carries an image is answered like a POST."""
    if uploads.has_body(request):
        if query.image_id:
            raise Problem(422, "parameter", "Give image_id or send an image, not both.")
        return await propose(request, query)
    if not query.image_id:
        detail = "Give image_id, the image.id of a recent answer, or send the image: POST /proposals."
        raise Problem(422, "parameter", detail)
    return await propose(request, query, query.image_id)


async def propose(request: Request, query: ProposalsQuery, image_id: str | None = None) -> Response:
    """Answers for the image in the request's body, or for the recent upload with this `image_id`."""
    runtime: Runtime = request.app.state.runtime
    traffic: Traffic = request.app.state.traffic
    model = runtime.readiness.model(query.model, query.version)
    examined = runtime.admission.examine(query.timeout, query.priority == "bulk", client(request.scope))
    sender = owner(request.scope)
    with model.in_use():
        if image_id:
            data = runtime.recent.get(image_id, sender)
        else:
            data = await uploads.read(request, runtime.settings, traffic)
        admitted = until_sent(request).enter_context(runtime.admission.admit(examined, len(data)))
        gone = partial(when_gone, request)
        inference = await runtime.infer(data, model, True, admitted, gone, sender, image_id, query.strict)
        answer = answers.proposals(inference, model.card, query)
        media_type = answers.preferred(",".join(request.headers.getlist("accept")), OFFERED)
        return answers.response(answer, inference, model.card, media_type, runtime.metrics)
