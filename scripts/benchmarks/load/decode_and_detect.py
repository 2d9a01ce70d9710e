"""From JPEGs to boxes without a server: the code that the raw pipeline and the plain server share.

It decodes and scales as the service does, so that the contenders differ only in how they serve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from service.engine.card import Card
from service.images.decode import decode
from service.images.fit import Canvas, to_original

OUTPUTS = ("num_detections", "boxes", "scores", "labels")


@dataclass(frozen=True)
class Found:
    """One image's detections, best first: boxes as x1, y1, x2, y2 in pixels of the upright image, scores, names."""

    boxes: list[list[float]]
    scores: list[float]
    labels: list[str]


def detect(session: onnxruntime.InferenceSession, card: Card, uploads: Sequence[bytes]) -> list[Found]:
    """The detections of all images, in one run. The images must share a canvas."""
    canvases = [decode(data, card.geometry) for data in uploads]
    height, width = canvases[0].size
    pixels = np.zeros((len(canvases), height, width, 3), np.uint8)
    sizes = np.empty((len(canvases), 2), np.int64)
    for row, canvas in enumerate(canvases):
        h, w = canvas.pixels.shape[:2]
        pixels[row, :h, :w] = canvas.pixels
        sizes[row] = h, w
    out = session.run(OUTPUTS, {"images": pixels, "sizes": sizes})
    return [_found(card, canvas, *(values[row] for values in out)) for row, canvas in enumerate(canvases)]


def _found(card: Card, canvas: Canvas, count: Any, boxes: Any, scores: Any, labels: Any) -> Found:
    wanted = np.flatnonzero(scores[:count] >= card.score_threshold)
    return Found(
        to_original(boxes[wanted], canvas).tolist(),
        scores[wanted].tolist(),
        [card.labels[label] for label in labels[wanted]],
    )
