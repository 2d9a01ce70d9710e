"""What goes over the wire.

The models describe answers for the documentation; the answers themselves are built from arrays and written by orjson,
since walking a thousand proposals in pydantic or FastAPI's encoder costs more than all the rest of the request.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from service.engine.engine import Result
from service.engine.model import Card
from service.http import npz
from service.http.problems import Problem

SHORT_QUERY = 256  # bytes of a query that is remembered; 512 longer ones could take much memory

PIXEL_DECIMALS = 3  # finer than any detector; a float32 as it stands doubles the answer's size
SCORE_DECIMALS = 6

Box = Annotated[list[float], Field(min_length=4, max_length=4, examples=[[105.5, 61.25, 248.0, 190.75]])]


# --- queries -----------------------------------------------------------------------------------------------------

Query = TypeVar("Query", bound=BaseModel)


def from_query(kind: type[Query], query: bytes) -> Query:
    """The request's query. Raises Problem (422) that names every bad or unknown parameter.

    FastAPI would do this from the route's signature, for a fifth of what the whole request costs the event loop.
    """
    return _remembered(kind, query) if len(query) <= SHORT_QUERY else _parsed(kind, query)


def _parsed(kind: type[Query], query: bytes) -> Query:
    parameters = QueryParams(query)
    repeatable = [name for name, field in kind.model_fields.items() if field.annotation == list[str]]
    values = {name: parameters.getlist(name) if name in repeatable else parameters[name] for name in parameters}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        listed = [
            {
                "parameter": str(fault["loc"][0])[:100],
                "detail": "unknown parameter" if fault["type"] == "extra_forbidden" else fault["msg"],
            }
            for fault in error.errors(include_url=False, include_context=False)[:10]
        ]
    detail = "; ".join(f"{fault['parameter']}: {fault['detail']}" for fault in listed)
    raise Problem(422, "parameter", f"{detail}. GET /docs lists the parameters.", more={"errors": listed})


_remembered = lru_cache(512)(_parsed)  # a client's requests mostly ask the same


class VersionQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int | None = Field(None, ge=0, description="version of the model; default: the highest")


class ModelQuery(VersionQuery):
    """Which model answers."""

    model: str | None = Field(None, description="name of a served model; default: the service's own choice")


class ProposalsQuery(ModelQuery):
    max_proposals: int | None = Field(None, ge=1, description="at most so many, the best; default: all that there are")
    timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="seconds from the end of the upload after which the answer is of no use: what waits so long is "
        "not computed, and gets 504; default, and most: the service's own limit",
    )
    priority: Literal["interactive", "bulk"] = Field(
        "interactive", description="bulk lets the others go first, and finds fewer places when there is much to do"
    )


class RecentQuery(ProposalsQuery):
    image_id: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="image.id of an earlier answer: the SHA-256 of the upload"
    )


class DetectQuery(ProposalsQuery):
    score_threshold: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="leaves out what scores less; default: the model's"
    )
    max_detections: int | None = Field(None, ge=1, description="at most so many, the best; default: all that there are")
    label: list[str] = Field([], description="only these labels; repeat it for several: `label=circle&label=star`")
    proposals: bool = Field(False, description="also answer the proposals that the detections were made from")


# --- answers -----------------------------------------------------------------------------------------------------


class Image(BaseModel):
    """The image as seen: upright (EXIF applied), in pixels."""

    id: str = Field(description="SHA-256 of the upload's bytes; GET /proposals takes it for a while")
    width: int
    height: int


class ModelId(BaseModel):
    name: str
    version: int


class Timing(BaseModel):
    """Where the time went, in milliseconds."""

    read_ms: float = Field(description="the body arriving")
    decode_ms: float = Field(description="bytes to canvas")
    queue_ms: float = Field(description="waiting for a thread and for an engine")
    inference_ms: float = Field(description="the batch that this image was in")
    total_ms: float


class Proposals(BaseModel):
    boxes: list[Box]
    scores: list[float] = Field(description="objectness")


class DetectAnswer(BaseModel):
    """Parallel arrays, best first; boxes are x1, y1, x2, y2 in pixels of the upright image."""

    image: Image
    model: ModelId
    boxes: list[Box]
    scores: list[float]
    labels: list[str]
    proposals: Proposals | None = Field(None, description="only with proposals=true")
    timing: Timing


class ProposalsAnswer(Proposals):
    """What the RPN found: the RoIs that the detection head would look at, best first."""

    image: Image
    model: ModelId
    timing: Timing


class ModelAnswer(BaseModel):
    """`model.json` and what the service adds to it."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    versions: list[int] = Field(description="all that are served, the default last")
    provider: str
    labels: list[str]
    canvases: list[tuple[int, int]] = Field(description="height, width")
    score_threshold: float
    sha256: str
    metrics: dict[str, Any]


class Refusal(BaseModel):
    model: str
    reason: str


class ModelsAnswer(BaseModel):
    default: ModelId | None = Field(description="what answers requests that name no model")
    models: list[ModelAnswer]
    refused: list[Refusal] = Field(description="directories of the store that are not served, and why")


class ReadyAnswer(BaseModel):
    status: str
    provider: str
    models: list[str]
    refused: list[Refusal]


class ProblemAnswer(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="what is wrong and what to do")
    reason: str = Field(description="one word for programs")
    request_id: str


# --- building them -----------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """An image that was answered: its id and upright size, and the seconds that each stage took."""

    id: str
    width: int
    height: int
    seconds: dict[str, float]


def detections(seen: Seen, card: Card, result: Result, query: DetectQuery) -> tuple[dict[str, Any], list[str]]:
    """The answer to /detect, and its labels."""
    threshold = card.score_threshold if query.score_threshold is None else query.score_threshold
    wanted = result.scores >= threshold
    rows: Any = slice(int(wanted.sum()))  # they are best first
    if query.label:
        rows = np.flatnonzero(wanted & np.isin(result.labels, [card.labels.index(label) for label in query.label]))
    boxes, scores, indices = (
        each[rows][: query.max_detections] for each in (result.boxes, result.scores, result.labels)
    )
    labels = [card.labels[index] for index in indices.tolist()]
    answer = _head(seen, card)
    answer["boxes"] = _rounded(boxes, PIXEL_DECIMALS)
    answer["scores"] = _rounded(scores, SCORE_DECIMALS)
    answer["labels"] = labels
    if query.proposals:
        answer["proposals"] = _proposals(result, query)
    answer["timing"] = _timing(seen)
    return answer, labels


def proposals(seen: Seen, card: Card, result: Result, query: ProposalsQuery) -> dict[str, Any]:
    """The answer to /proposals."""
    return _head(seen, card) | _proposals(result, query) | {"timing": _timing(seen)}


def to_json(answer: dict[str, Any]) -> bytes:
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def to_npz(answer: dict[str, Any], card: Card) -> bytes:
    """The members of the JSON answer but for timing, nested names joined by `_`, and the labels' indices."""
    members: dict[str, Any] = {}
    for name, value in answer.items():
        inner = {f"{name}_{each}": value[each] for each in value} if isinstance(value, dict) else {name: value}
        members |= {} if name == "timing" else inner
    arrays = {name: np.float32(value) if isinstance(value, np.ndarray) else value for name, value in members.items()}
    if "labels" in answer:
        arrays["labels"] = np.array(answer["labels"], dtype=np.str_)
        arrays["label_indices"] = np.array([card.labels.index(label) for label in answer["labels"]], dtype=np.int64)
    return npz.encode(arrays)


def _head(seen: Seen, card: Card) -> dict[str, Any]:
    return {
        "image": {"id": seen.id, "width": seen.width, "height": seen.height},
        "model": {"name": card.name, "version": card.version},
    }


def _proposals(result: Result, query: ProposalsQuery) -> dict[str, Any]:
    return {
        "boxes": _rounded(result.proposals[: query.max_proposals], PIXEL_DECIMALS),
        "scores": _rounded(result.objectness[: query.max_proposals], SCORE_DECIMALS),
    }


def _timing(seen: Seen) -> dict[str, float]:
    return {f"{stage}_ms": round(seconds * 1000, 3) for stage, seconds in seen.seconds.items()}


def _rounded(values: NDArray[np.float32], decimals: int) -> NDArray[np.float64]:
    # in float64, whose shortest decimal form is the rounded one; in numpy's own memory order, which orjson needs
    rounded: NDArray[np.float64] = values.astype(np.float64, order="C").round(decimals)
    return rounded
