"""Average precision as Pascal VOC defines it (Everingham et al. 2010, section 4.2; VOCevaldet.m of the devkit).

The detections of a class are taken from all images, best score first. Each is compared with the object of its class and
image that it overlaps most. It is a hit if their IoU is at least 0.5 and the object was not hit before; otherwise it is
false. Difficult objects do not count, and detections that hit them are neither right nor wrong. The devkit adds 1 to
every side, because its corners are pixels that both belong to the box. Here x2 and y2 are exclusive, so the IoU is the
same without the 1.

n is the number of detections of one class in all images, and G the number of its objects that count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.overlaps import overlaps

MIN_OVERLAP = 0.5  # section 4.2; the devkit compares with >=


class Outcome(IntEnum):
    FALSE = 0
    HIT = 1
    IGNORED = 2  # hits a difficult object or lies in a crowd


@dataclass(frozen=True)
class Matches:
    """The detections of one class, best score first, each with its outcome.

    scores: float [n];  outcomes: int [n], values of Outcome;  images, rows: int [n], the index of the image and the row
    in its prediction;  targets: int [n], the row of the object of that class that the detection overlaps most, -1 for
    none; overlaps: float [n], their IoU;  objects: G.
    """

    scores: np.ndarray
    outcomes: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    targets: np.ndarray
    overlaps: np.ndarray
    objects: int


@dataclass(frozen=True)
class Curve:
    """Precision and recall after each detection that counts, best score first: float [n] each."""

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray


def voc_ap(samples: Sequence[Sample], predictions: Sequence[Prediction], labels: tuple[str, ...]) -> dict[str, Any]:
    """VOC's average precision by both of its rules, at IoU 0.5.

    Returns VOC_mAP and VOC_AP_by_class (the area under the curve made monotone: VOC 2010 and later), VOC_mAP_11 and
    VOC_AP_11_by_class (the mean at eleven recalls: VOC 2007), and VOC_curves, a Curve by class. A class without objects
    that count has an AP of None and no curve, and the means ignore it. The means are None if no class has objects.
    """
    areas: dict[str, float | None] = {}
    elevens: dict[str, float | None] = {}
    curves: dict[str, Curve] = {}
    for label, name in enumerate(labels):
        matches = match_class(samples, predictions, label)
        areas[name] = elevens[name] = None
        if matches.objects:
            counts = matches.outcomes != Outcome.IGNORED
            hits = np.cumsum(matches.outcomes[counts] == Outcome.HIT)
            precision = hits / np.arange(1, len(hits) + 1)
            areas[name] = area_under(hits, precision, matches.objects)
            elevens[name] = eleven_points(hits, precision, matches.objects)
            curves[name] = Curve(hits / matches.objects, precision, matches.scores[counts])
    return {
        "VOC_mAP": _mean(areas),
        "VOC_mAP_11": _mean(elevens),
        "VOC_AP_by_class": areas,
        "VOC_AP_11_by_class": elevens,
        "VOC_curves": curves,
    }


def match_class(samples: Sequence[Sample], predictions: Sequence[Prediction], label: int) -> Matches:
    """Matches the detections of one class with its objects. Equal scores keep the order of the images."""
    matched = [_match_image(sample, prediction, label) for sample, prediction in zip(samples, predictions, strict=True)]
    images = np.repeat(np.arange(len(matched)), [len(columns[0]) for columns in matched])
    empty = (np.zeros(0), np.zeros(0, int), np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    scores, outcomes, rows, targets, overlap = (np.concatenate(column) for column in zip(empty, *matched, strict=True))
    order = np.argsort(-scores, kind="stable")
    return Matches(
        scores[order],
        outcomes[order],
        images[order],
        rows[order],
        targets[order],
        overlap[order],
        objects=sum(int((sample.labels[sample.counted()] == label).sum()) for sample in samples),
    )


def _match_image(sample: Sample, prediction: Prediction, label: int) -> tuple[np.ndarray, ...]:
    """Scores, outcomes, rows, targets and overlaps of a class's detections in one image, best score first."""
    rows = np.flatnonzero(prediction.labels == label)
    rows = rows[np.argsort(-prediction.scores[rows], kind="stable")]
    crowd = np.zeros(len(sample.labels), bool) if sample.crowd is None else sample.crowd
    objects = np.flatnonzero((sample.labels == label) & ~crowd)
    crowds = np.flatnonzero((sample.labels == label) & crowd)
    boxes = prediction.boxes[rows]
    # A crowd's box is larger than any of its members, so COCO divides by the area of the detection alone.
    in_crowd = (overlaps(boxes, sample.boxes[crowds], inside=True) >= MIN_OVERLAP).any(axis=1)
    outcomes = np.where(in_crowd, Outcome.IGNORED, Outcome.FALSE).astype(int)
    targets, best = np.full(len(rows), -1), np.zeros(len(rows))
    if len(objects) and len(rows):
        table = overlaps(boxes, sample.boxes[objects])
        targets, best = objects[table.argmax(axis=1)], table.max(axis=1)
    counted = sample.counted()
    hit: set[int] = set()
    for place in np.flatnonzero(best >= MIN_OVERLAP):
        target = int(targets[place])
        if not counted[target]:
            outcomes[place] = Outcome.IGNORED
        elif target not in hit:
            outcomes[place] = Outcome.HIT
            hit.add(target)
    return prediction.scores[rows].astype(np.float64), outcomes, rows, targets, best


def area_under(hits: np.ndarray, precision: np.ndarray, objects: int) -> float:
    """The area under the curve of the best precision at each recall or any higher one (VOC 2010 and later).

    hits: int [n], the number of hits among the first 1 … n detections;  precision: float [n];  objects: G > 0.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0) * envelope) / objects)


def eleven_points(hits: np.ndarray, precision: np.ndarray, objects: int) -> float:
    """The mean over recalls 0, 0.1, …, 1 of the best precision at that recall or any higher one (VOC 2007).

    The arguments are those of `area_under`. Recalls are compared as whole numbers, because in floats 3 / 10 is less
    than 3 * 0.1.
    """
    best = [precision[10 * hits >= tenth * objects].max(initial=0.0) for tenth in range(11)]
    return float(np.mean(best))


def _mean(by_class: dict[str, float | None]) -> float | None:
    known = [value for value in by_class.values() if value is not None]
    return float(np.mean(known)) if known else None
