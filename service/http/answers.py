"""Turns an inference into a response: JSON, an .npz file, or an image with the boxes drawn."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from service.engine.card import Card
from service.engine.engine import Result
from service.http import npz
from service.http.schemas import DetectQuery, ProposalsQuery
from service.images.depth import RANGE_WARNINGS
from service.images.integrity import FURTHER_PAGES, clause
from service.runtime import Inference
from service.telemetry.metrics import Metrics

JSON = "application/json"

LONGEST_ACCEPT = 1000  # characters; browsers send 150. Bounds the time to parse it, and the memory of the cache
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")

# No detector is more accurate than that, and unrounded float32 values would double the size of the answer.
PIXEL_DECIMALS = 3
SCORE_DECIMALS = 6
REMEDY = "Objects may be missed or invented. Send the original file."
PAGES_REMEDY = "Send each of the others as an image of its own."
RANGE_REMEDY = (
    "Objects may be missed. Send the image with its values multiplied so that they reach white, or publish the model "
    "with the images' own white: faster-rcnn export --white VALUE."
)


def detections(inference: Inference, card: Card, query: DetectQuery) -> dict[str, Any]:
    """The answer to /detect, with its numbers as NumPy arrays."""
    result = inference.result
    threshold = card.score_threshold if query.score_threshold is None else query.score_threshold
    wanted = result.scores >= threshold
    found = int(wanted.sum())
    rows: Any = slice(found)  # the engine returns them best first
    if query.label:
        rows = np.flatnonzero(wanted & np.isin(result.labels, [card.labels.index(label) for label in query.label]))
        found = len(rows)
    boxes, scores, indices = (
        each[rows][: query.max_detections] for each in (result.boxes, result.scores, result.labels)
    )
    truncated = []
    if result.left_out > 0 and result.left_out >= threshold:
        truncated.append("model_detections")
    if query.max_detections is not None and found > query.max_detections:
        truncated.append("max_detections")
    if query.proposals:
        truncated += _truncated_proposals(result, query)
    answer = _head(inference, card) | {"truncated": truncated}
    answer["boxes"] = _rounded(boxes, PIXEL_DECIMALS)
    answer["scores"] = _rounded(scores, SCORE_DECIMALS)
    answer["labels"] = [card.labels[index] for index in indices.tolist()]
    if query.proposals:
        answer["proposals"] = _proposals(result, query)
    answer["timing"] = _timing(inference)
    return answer


def proposals(inference: Inference, card: Card, query: ProposalsQuery) -> dict[str, Any]:
    """The answer to /proposals, with its numbers as NumPy arrays."""
    result = inference.result
    truncated = _truncated_proposals(result, query)
    head = _head(inference, card) | {"truncated": truncated}
    return head | _proposals(result, query) | {"timing": _timing(inference)}


def response(answer: dict[str, Any], inference: Inference, card: Card, media_type: str, metrics: Metrics) -> Response:
    """`answer` as JSON or as an .npz file."""
    began = time.perf_counter()
    body = to_npz(answer, card) if media_type == npz.MEDIA_TYPE else to_json(answer)
    return encoded_response(body, answer, inference, media_type, began, metrics)


def encoded_response(
    body: bytes, answer: dict[str, Any], inference: Inference, media_type: str, began: float, metrics: Metrics
) -> Response:
    """A response with `body` and, in its header, the time of every stage, warnings, and limits that cut the answer.

    answer  what `body` encodes, as `detections` or `proposals` returned it
    began   `time.perf_counter()` when encoding began
    """
    took = time.perf_counter() - began
    metrics.stage["encode"].observe(took)
    stages = {**inference.seconds, "encode": took}
    timing = ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in stages.items())
    headers = {"Image-Id": inference.image_id, "Server-Timing": timing}
    if inference.warnings:
        headers["Image-Warnings"] = ", ".join(inference.warnings)
    if answer["truncated"]:
        headers["Answer-Truncated"] = ", ".join(answer["truncated"])
    return Response(body, media_type=media_type, headers=headers)


def preferred(accept: str, offered: tuple[str, ...]) -> str:
    """The media type of `offered` that an Accept header ranks highest (RFC 9110, section 12.5.1), else JSON.

    JSON too if the header is longer than LONGEST_ACCEPT.
    """
    return _preferred(accept, offered) if len(accept) <= LONGEST_ACCEPT else JSON


@lru_cache(64)
def _preferred(accept: str, offered: tuple[str, ...]) -> str:
    """What `preferred` returns for a header that is not too long.

    The most specific range decides on a type: image/png before image/* before */*. Of equally ranked types, the one
    whose range comes first in the header wins, then the first one offered. Parameters other than q are ignored, and so
    is a range whose q is not a number from 0 to 1 with at most three decimals.
    """
    ranges: dict[str, tuple[float, int]] = {}  # weight and place in the header
    for place, item in enumerate(accept.lower().split(",")):
        name, *parameters = (part.strip() for part in item.split(";"))
        weights = [
            value.strip() for key, _, value in (each.partition("=") for each in parameters) if key.strip() == "q"
        ]
        if all(_WEIGHT.fullmatch(weight) for weight in weights) and len(weights) <= 1:
            ranges.setdefault(name, (float(weights[0]) if weights else 1.0, -place))
    best, chosen = (0.0, 0), JSON
    for kind in offered:
        matching = (kind, f"{kind.split('/')[0]}/*", "*/*")
        rank = next((ranges[name] for name in matching if name in ranges), (0.0, 0))
        if rank[0] and rank > best:
            best, chosen = rank, kind
    return chosen


def to_json(answer: dict[str, Any]) -> bytes:
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def to_npz(answer: dict[str, Any], card: Card) -> bytes:
    """The members of the JSON answer except timing, plus the labels' indices. Nested names are joined by `_`.

    Of the warnings only the words are included.
    """
    members: dict[str, Any] = {}
    for name, value in answer.items():
        inner = {f"{name}_{each}": value[each] for each in value} if isinstance(value, dict) else {name: value}
        members |= {} if name == "timing" else inner
    arrays = {name: np.float32(value) if isinstance(value, np.ndarray) else value for name, value in members.items()}
    arrays["warnings"] = np.array([each["reason"] for each in answer["warnings"]], dtype=np.str_)
    arrays["truncated"] = np.array(answer["truncated"], dtype=np.str_)
    if "labels" in answer:
        arrays["labels"] = np.array(answer["labels"], dtype=np.str_)
        arrays["label_indices"] = np.array([card.labels.index(label) for label in answer["labels"]], dtype=np.int64)
    return npz.encode(arrays)


def _head(inference: Inference, card: Card) -> dict[str, Any]:
    return {
        "image": {"id": inference.image_id, "width": inference.width, "height": inference.height},
        "model": {"name": card.name, "version": card.version},
        "warnings": image_warnings(inference.warnings),
    }


def image_warnings(words: tuple[str, ...]) -> list[dict[str, str]]:
    """The member `warnings` of an answer, or of the problem with which `strict` replaces it."""
    return [{"reason": str(word), "detail": _detail(word)} for word in words]


def _detail(word: str) -> str:
    if word in RANGE_WARNINGS:
        return f"The image does not fit the model: {clause(word)}. {RANGE_REMEDY}"
    if word == FURTHER_PAGES:
        return f"The image is one of several: {clause(word)}. {PAGES_REMEDY}"
    return f"The image is damaged: {clause(word)}. {REMEDY}"


def _proposals(result: Result, query: ProposalsQuery) -> dict[str, Any]:
    return {
        "boxes": _rounded(result.proposals[: query.max_proposals], PIXEL_DECIMALS),
        "scores": _rounded(result.objectness[: query.max_proposals], SCORE_DECIMALS),
    }


def _truncated_proposals(result: Result, query: ProposalsQuery) -> list[str]:
    """The limits that may have cut the proposals of an answer, by the words of the schema."""
    words = [] if result.all_proposals else ["model_proposals"]
    if query.max_proposals is not None and len(result.proposals) > query.max_proposals:
        words.append("max_proposals")
    return words


def _timing(inference: Inference) -> dict[str, float]:
    return {f"{stage}_ms": round(seconds * 1000, 3) for stage, seconds in inference.seconds.items()}


def _rounded(values: NDArray[np.float32], decimals: int) -> NDArray[np.float64]:
    # orjson needs C memory order, and writes the rounded decimals only for float64
    rounded: NDArray[np.float64] = values.astype(np.float64, order="C").round(decimals)
    return rounded
