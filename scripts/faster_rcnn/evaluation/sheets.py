"""Draws what a detector finds, and its mistakes.  Boxes are x1, y1, x2, y2 in pixels of the image."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.drawing import (
    COVERING,
    IDLE,
    TRUTH,
    WRONG,
    draw_boxes,
    draw_prediction,
    rescale,
    side_by_side,
    with_caption,
)
from faster_rcnn.evaluation.mistakes import Mistake
from faster_rcnn.evaluation.overlaps import overlaps
from faster_rcnn.evaluation.voc import MIN_OVERLAP

SIDE, MISTAKE_SIDE = 600, 420  # longer side of a drawing in pixels; mistakes are shown in a grid
PROPOSALS_SHOWN = 50  # more would hide the image


def draw_truth(image: np.ndarray, sample: Sample, names: Sequence[str], factor: float) -> Image.Image:
    """Draws the objects with their classes on `image`, the sample's image resized by `factor`."""
    counted = sample.counted()
    captions = [
        names[label] + ("" if is_counted else " (not counted)")
        for label, is_counted in zip(sample.labels.tolist(), counted.tolist(), strict=True)
    ]
    return draw_boxes(image, sample.boxes * factor, captions, [TRUTH] * len(captions))


def draw_proposals(image: np.ndarray, sample: Sample, proposals: np.ndarray, factor: float) -> Image.Image:
    """Draws the best proposals; those that cover an object (IoU >= 0.5) are bright and on top."""
    best = proposals[:PROPOSALS_SHOWN]
    overlap = overlaps(best, sample.boxes).max(axis=1, initial=0.0)
    order = np.argsort(overlap >= MIN_OVERLAP, kind="stable")
    colours = [COVERING if highest >= MIN_OVERLAP else IDLE for highest in overlap[order].tolist()]
    return draw_boxes(image, best[order] * factor, [""] * len(best), colours, width=1)


def draw_overview(
    sample: Sample, prediction: Prediction, names: Sequence[str], threshold: float, title: str
) -> Image.Image:
    """Side by side: the objects, the detections that score at least `threshold`, and the best proposals, if known."""
    image, factor = rescale(sample.image, SIDE)
    scaled = Prediction(prediction.boxes * factor, prediction.scores, prediction.labels)
    panels = [
        with_caption(draw_truth(image, sample, names, factor), f"{title}: {len(sample.labels)} annotated objects"),
        with_caption(
            draw_prediction(image, scaled, names, threshold),
            f"{int((prediction.scores >= threshold).sum())} detections with a score of {threshold} or more",
        ),
    ]
    if prediction.proposals is not None:
        panels.append(_proposals_panel(image, sample, prediction.proposals, factor, "the best"))
    return side_by_side(panels)


def draw_sources(sample: Sample, sources: Mapping[str, np.ndarray]) -> Image.Image:
    """Side by side: the best proposals of each source.

    sources: float [P, 4] by the name of the source.
    """
    image, factor = rescale(sample.image, SIDE)
    return side_by_side(
        [_proposals_panel(image, sample, proposals, factor, f"{name}: the best") for name, proposals in sources.items()]
    )


def _proposals_panel(
    image: np.ndarray, sample: Sample, proposals: np.ndarray, factor: float, start: str
) -> Image.Image:
    shown = min(PROPOSALS_SHOWN, len(proposals))
    caption = f"{start} {shown} of {len(proposals)} proposals; bright: IoU of {MIN_OVERLAP} or more with an object"
    return with_caption(draw_proposals(image, sample, proposals, factor), caption)


def draw_mistake(sample: Sample, mistake: Mistake, title: str) -> Image.Image:
    """Draws the wrong or missed box and the boxes that the caption mentions."""
    image, factor = rescale(sample.image, MISTAKE_SIDE)
    missed = mistake.kind == "missed"
    boxes = np.concatenate([mistake.others, mistake.box[None]]) * factor
    colours = [WRONG if missed else TRUTH] * len(mistake.others) + [TRUTH if missed else WRONG]
    drawing = draw_boxes(image, boxes, [""] * len(boxes), colours)
    return with_caption(drawing, f"{mistake.kind}: {mistake.caption} ({title})")
