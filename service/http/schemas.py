"""Schemas of the API's queries and answers, for validation and for /openapi.json.

Answers are not built from these classes but from arrays, which orjson writes (answers.py). To encode a thousand
proposals, pydantic or FastAPI would take longer than the rest of the request.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

LARGEST = 2**63 - 1  # of a whole number, which then fits 64 bits

# The name of a model or label in a query. query.py refuses control characters in every value.
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]

Canvas = Annotated[list[int], Field(min_length=2, max_length=2)]
Box = Annotated[list[float], Field(min_length=4, max_length=4, examples=[[105.5, 61.25, 248.0, 190.75]])]


# --- queries -----------------------------------------------------------------------------------------------------


class NoQuery(BaseModel):
    """No parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VersionQuery(NoQuery):
    version: int | None = Field(
        None,
        ge=0,
        le=LARGEST,
        description="version of the model; default: the one that the store pins, else the highest",
    )


class ModelQuery(VersionQuery):
    """Which model to use."""

    model: Text | None = Field(None, description="name of a served model; default: `default` in GET /models")


class ProposalsQuery(ModelQuery):
    max_proposals: int | None = Field(
        None,
        ge=1,
        le=LARGEST,
        description="maximum number of proposals to return, best first; default: all that the model returns",
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
    strict: bool = Field(
        False,
        description="refuse an image that would get a warning with 400 (reason `damaged_image`), instead of "
        "answering for what can be decoded, with `warnings`",
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
        description="drop detections below this score; default: the model's threshold, `score_threshold` in GET "
        "/models",
    )
    max_detections: int | None = Field(
        None,
        ge=1,
        le=LARGEST,
        description="maximum number of detections to return, best first; default: all that the model returns",
    )
    label: list[Text] = Field(
        [], description="return only these labels; repeat the parameter for several: `label=circle&label=star`"
    )
    proposals: bool = Field(False, description="also return the proposals from which the detections were made")


# --- answers -----------------------------------------------------------------------------------------------------


class Image(BaseModel):
    """The upright image (EXIF orientation applied), in pixels."""

    id: str = Field(description="SHA-256 of the upload's bytes; GET /proposals accepts it while the upload is kept")
    width: int
    height: int


class ImageWarning(BaseModel):
    """What is wrong with an image that could be decoded: it is damaged, or its values do not fit the model."""

    reason: Literal[
        "damaged_data",
        "missing_scans",
        "missing_rows",
        "missing_end",
        "unknown_colours",
        "wrong_checksum",
        "nearly_black",
        "beyond_white",
        "further_pages",
    ] = Field(description="a fixed word, for programs")
    detail: str = Field(description="the fault and the remedy")


Truncated = Annotated[
    list[Literal["model_detections", "max_detections", "model_proposals", "max_proposals"]],
    Field(
        description="empty unless a limit on their number may have cut the answer. `max_detections`, `max_proposals`: "
        "there were more, and the parameter of this name left them out. `model_detections`: the model returned as many "
        "detections as it can for an image, and all of them reach the score threshold, so there may be more; "
        "`faster-rcnn export --detections` raises the limit. `model_proposals`: the model returned as many proposals "
        "as it can"
    ),
]


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
    warnings: list[ImageWarning] = Field(description="empty unless the image is damaged, or its values do not fit")
    truncated: Truncated
    boxes: list[Box]
    scores: list[float]
    labels: list[str]
    proposals: Proposals | None = Field(None, description="only with proposals=true")
    timing: Timing


class ProposalsAnswer(Proposals):
    """The proposals of the RPN, which the RoI head would classify, best first."""

    image: Image
    model: ModelId
    warnings: list[ImageWarning] = Field(description="empty unless the image is damaged, or its values do not fit")
    truncated: Truncated
    timing: Timing


class ModelAnswer(BaseModel):
    """The contents of `model.json`, with `versions` and `provider` added by the service."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    versions: list[int] = Field(description="all served versions, the highest last")
    provider: str
    labels: list[str]
    canvases: list[Canvas] = Field(description="height, width")
    score_threshold: float
    sha256: str
    metrics: dict[str, Any]


class Refusal(BaseModel):
    model: str
    reason: str


class DefaultModel(BaseModel):
    name: str | None
    version: int | None = Field(description="the version that answers; null if none can")
    reason: str | None = Field(None, description="why the default model is not served; absent if it is served")


class Arrival(BaseModel):
    model: str
    state: str


class ModelsAnswer(BaseModel):
    default: DefaultModel | None = Field(description="the model for requests that name none")
    models: list[ModelAnswer] = Field(description="the cards of the versions that are served, up to a limit in bytes")
    models_total: int = Field(description="the number of versions that are served")
    refused: list[Refusal] = Field(description="the first versions in the store that are not served, with the reasons")
    refused_total: int = Field(description="the number of all versions that are not served")
    arriving: list[Arrival] = Field(description="the first versions that are still being copied to the store")
    arriving_total: int = Field(description="the number of all versions that are still being copied")
    pins: dict[str, int | None] = Field(
        description="by name, the version for requests that name none, for the first models with a file `default`; "
        "null if that file cannot be used"
    )
    store: str | None = Field(description="why the store cannot be scanned now; null if it can")


class GpuAnswer(BaseModel):
    """A GPU that was checked at start. Texts are empty if they are unknown."""

    device: int = Field(description="its number, in CUDA's order")
    gpu: str = Field(description="its name")
    architecture: str = Field(description="such as sm_90")
    driver: str = Field(description="version of the driver")
    driver_cuda: str = Field(description="the highest version of CUDA that the driver supports")
    cuda: str = Field(description="version of the CUDA libraries")
    cudnn: str = Field(description="version of cuDNN")
    fault: str = Field(
        description="empty, or why the GPU is not used: driver, libraries, architecture, busy, memory, kernels, values"
    )
    reason: str | None = Field(description="the fault and the remedy as a sentence; null if the GPU is used")


class ReadyAnswer(BaseModel):
    status: str
    provider: str
    why_cpu: str | None = Field(description="why the service does not run on CUDA; null if it does")
    gpus: list[GpuAnswer] = Field(description="the GPUs that were checked at start")
    models: list[str] = Field(description="the first versions that are served")
    refused: list[Refusal] = Field(description="the first versions that are not served, with the reasons")
    refused_total: int = Field(description="the number of all versions that are not served")
    store: str | None = Field(description="why the store cannot be scanned now; null if it can")
    without_fixed_shapes: list[Refusal] = Field(
        description="the first versions that are served, but more slowly, because their sessions cannot have fixed "
        "shapes (FIXED_SHAPES), with the reasons"
    )


class ProblemAnswer(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="the fault and the remedy")
    reason: str = Field(description="a fixed word that identifies the kind of problem, for programs")
    request_id: str
