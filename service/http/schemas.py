"""Schemas of the API's queries and answers, for validation and for /openapi.json.

Answers are not built from these classes but from arrays, which orjson writes (answers.py). To encode a thousand
proposals, pydantic or FastAPI would take longer than the rest of the request.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Box = Annotated[list[float], Field(min_length=4, max_length=4, examples=[[105.5, 61.25, 248.0, 190.75]])]


# --- queries -----------------------------------------------------------------------------------------------------


class VersionQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int | None = Field(None, ge=0, description="version of the model; default: the highest")


class ModelQuery(VersionQuery):
    """Which model to use."""

    model: str | None = Field(None, description="name of a served model; default: `default` in GET /models")


class ProposalsQuery(ModelQuery):
    max_proposals: int | None = Field(
        None, ge=1, description="maximum number of proposals to return, best first; default: all"
    )
    timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="seconds from the end of the upload to the deadline, after which the request gets 504. "
        "Default and maximum: REQUEST_TIMEOUT",
    )
    priority: Literal["interactive", "bulk"] = Field(
        "interactive",
        description="bulk requests yield to interactive ones and may use only half of MAX_IN_FLIGHT; requests for a "
        "drawn image always count as bulk",
    )


class RecentQuery(ProposalsQuery):
    image_id: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="image.id of an earlier answer: the SHA-256 of the upload"
    )


class DetectQuery(ProposalsQuery):
    score_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="drop detections below this score; default: the model's threshold",
    )
    max_detections: int | None = Field(
        None, ge=1, description="maximum number of detections to return, best first; default: all"
    )
    label: list[str] = Field(
        [], description="return only these labels; repeat the parameter for several: `label=circle&label=star`"
    )
    proposals: bool = Field(False, description="also return the proposals from which the detections were made")


# --- answers -----------------------------------------------------------------------------------------------------


class Image(BaseModel):
    """The upright image (EXIF orientation applied), in pixels."""

    id: str = Field(description="SHA-256 of the upload's bytes; GET /proposals accepts it while the upload is kept")
    width: int
    height: int


class ModelId(BaseModel):
    name: str
    version: int


class Timing(BaseModel):
    """The time that each stage took, in milliseconds."""

    read_ms: float = Field(description="receiving the body")
    decode_ms: float = Field(description="decoding the file and resizing the image onto the canvas")
    queue_ms: float = Field(description="waiting for a decoding thread and for an engine")
    inference_ms: float = Field(description="the run of the batch that held this image")
    total_ms: float = Field(description="from admission until the result is available")


class Proposals(BaseModel):
    boxes: list[Box]
    scores: list[float] = Field(description="objectness")


class DetectAnswer(BaseModel):
    """Parallel arrays, best first. Boxes are x1, y1, x2, y2 in pixels of the upright image."""

    image: Image
    model: ModelId
    boxes: list[Box]
    scores: list[float]
    labels: list[str]
    proposals: Proposals | None = Field(None, description="only with proposals=true")
    timing: Timing


class ProposalsAnswer(Proposals):
    """The proposals of the RPN, which the RoI head would classify, best first."""

    image: Image
    model: ModelId
    timing: Timing


class ModelAnswer(BaseModel):
    """The contents of `model.json`, with `versions` and `provider` added by the service."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    versions: list[int] = Field(description="all served versions, the default last")
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
    default: ModelId | None = Field(description="the model for requests that name none")
    models: list[ModelAnswer]
    refused: list[Refusal] = Field(description="versions in the store that are not served, with the reasons")


class ReadyAnswer(BaseModel):
    status: str
    provider: str
    models: list[str]
    refused: list[Refusal]


class ProblemAnswer(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="the fault and the remedy")
    reason: str = Field(description="a fixed word that identifies the kind of problem, for programs")
    request_id: str
