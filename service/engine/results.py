"""Turns the outputs of a run into one result per image, and refuses values that contract 1 excludes.

D  detections and  P  proposals of an image, which the graph pads;  boxes are x1, y1, x2, y2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.images.fit import Canvas, to_original

Floats = NDArray[np.float32]

_NOTHING_LEFT_OUT = np.float32(0)


@dataclass(frozen=True)
class Result:
    """One image's detections and proposals, best first, in pixels of the upright image.

    boxes [D, 4], scores [D], labels [D]: empty if only proposals were requested;  proposals [P, 4], objectness [P]
    left_out       the highest score that a detection can have which the graph's limit on their number left out; 0 if
                   the limit was not reached
    all_proposals  False if the graph's limit on their number was reached, so that it may have left out some
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]
    proposals: Floats
    objectness: Floats
    left_out: np.float32 = _NOTHING_LEFT_OUT
    all_proposals: bool = True


class WrongOutputError(Exception):
    """The graph returned values that contract 1 excludes, such as a label that the card does not list."""


def unpack(outputs: Mapping[str, Any], canvases: Sequence[Canvas], rows: int, classes: int) -> list[Result]:
    """One result per canvas.

    outputs  the values by name, each with `rows` rows; those after the last canvas are ignored
    classes  the number of labels that the card lists

    Raises WrongOutputError.
    """
    for name, value in outputs.items():
        if value.shape[:1] != (rows,):
            raise WrongOutputError(f"output {name} has shape {value.shape} for a batch of {rows}")
    return [_result(outputs, row, canvas, classes) for row, canvas in enumerate(canvases)]


def _result(outputs: Mapping[str, Any], row: int, canvas: Canvas, classes: int) -> Result:
    """Raises WrongOutputError for values that would make an answer wrong or impossible."""
    p = _rows(outputs, "num_proposals", "proposals", row)
    proposals = to_original(outputs["proposals"][row, :p], canvas)
    objectness = outputs["objectness"][row, :p]
    all_proposals = p < outputs["proposals"].shape[1]
    _check_finite(proposals=proposals, objectness=objectness)
    if "num_detections" not in outputs:
        return Result(_NO_BOXES, _NO_SCORES, _NO_LABELS, proposals, objectness, all_proposals=all_proposals)
    d = _rows(outputs, "num_detections", "boxes", row)
    boxes = to_original(outputs["boxes"][row, :d], canvas)
    scores, labels = outputs["scores"][row, :d], outputs["labels"][row, :d]
    _check_finite(boxes=boxes, scores=scores)
    if d and not (labels.min() >= 0 and labels.max() < classes):
        found = f"{labels.min()} to {labels.max()}"
        raise WrongOutputError(f"output labels has indices from {found}, but the card lists {classes} labels")
    return Result(boxes, scores, labels, proposals, objectness, _left_out(outputs, row, scores), all_proposals)


def _left_out(outputs: Mapping[str, Any], row: int, scores: Floats) -> np.float32:
    """`Result.left_out`, from the graph's output of this name if it has one.

    Any other graph may have left out something if it returned as many detections as it can. They come best first, so
    nothing that was left out has a higher score than the last of them.
    """
    if "left_out" not in outputs:
        return scores[-1] if 0 < len(scores) == outputs["boxes"].shape[1] else _NOTHING_LEFT_OUT
    left_out: np.float32 = outputs["left_out"][row]
    if not 0 <= left_out <= 1:
        raise WrongOutputError(f"output left_out is {left_out}, but it must be between 0 and 1")
    return left_out


def _rows(outputs: Mapping[str, Any], count: str, rows: str, row: int) -> int:
    """The number of real rows of an image."""
    number, most = int(outputs[count][row]), outputs[rows].shape[1]
    if not 0 <= number <= most:
        raise WrongOutputError(f"output {count} is {number}, but output {rows} has {most} rows")
    return number


def _check_finite(**outputs: Floats) -> None:
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise WrongOutputError(f"output {name} has values that are not finite")


_NO_BOXES = np.empty((0, 4), dtype=np.float32)
_NO_SCORES = np.empty(0, dtype=np.float32)
_NO_LABELS = np.empty(0, dtype=np.int64)
