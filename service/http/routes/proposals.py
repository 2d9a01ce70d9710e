"""GET and POST /proposals: the RPN alone, without the price of the detection head."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.http import npz, openapi, schemas
from service.http.problems import Problem
from service.http.routes.answers import JSON, array_answer, preferred, runtime_of
from service.http.schemas import ProposalsAnswer, ProposalsQuery, RecentQuery, from_query
from service.http.uploads import has_body

router = APIRouter(tags=["proposals"])

OFFERED = (JSON, npz.MEDIA_TYPE)


@router.post(
    "/proposals",
    summary="Region proposals of an image",
    openapi_extra=openapi.upload("proposals") | openapi.query(ProposalsQuery),
    responses={
        200: {"model": ProposalsAnswer, "content": openapi.NPZ, "headers": openapi.SERVER_TIMING},
        **openapi.problems(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    },
)
async def post_proposals(request: Request) -> Response:
    """The same numbers as `proposals` in the answer of `/detect?proposals=true`."""
    return await answer(request, from_query(ProposalsQuery, request.scope["query_string"]))


@router.get(
    "/proposals",
    summary="Region proposals of a recent upload",
    openapi_extra=openapi.query(RecentQuery),
    responses={
        200: {"model": ProposalsAnswer, "content": openapi.NPZ, "headers": openapi.SERVER_TIMING},
        **openapi.problems(400, 404, 422, 429, 500, 503, 504),
    },
)
async def get_proposals(request: Request) -> Response:
    """For `image.id` of a recent answer. A GET that carries an image is answered like a POST."""
    query = from_query(RecentQuery, request.scope["query_string"])
    if has_body(request) == (query.image_id is not None):
        raise Problem(
            422, "parameter", "Give image_id, the image.id of a recent answer, or send the image: POST /proposals."
        )
    return await answer(request, query, query.image_id)


async def answer(request: Request, query: ProposalsQuery, image_id: str | None = None) -> Response:
    runtime = runtime_of(request)
    engine = runtime.engine(query.model, query.version)
    terms = runtime.terms(query.timeout, query.priority)
    with runtime.admitted(terms):
        outcome = await runtime.infer(request, engine, True, terms, image_id)
        found = schemas.proposals(outcome.seen, engine.card, outcome.result, query)
        media_type = preferred(request.headers.get("accept", ""), OFFERED)
        return array_answer(runtime, outcome.seen, engine.card, found, media_type)
