"""Average precision as Pascal VOC defines it (Everingham et al. 2010, section 4.2; VOCevaldet.m of the devkit).

The detections of a class are taken from all images, best score first. Each is compared with the object of its class
and image that it overlaps most: at IoU >= 0.5 it is a hit, unless the object has been hit before; else it is false.
Difficult objects are not counted, and what hits them is neither right nor wrong. The devkit adds 1 to every side, for
its corners are whole pixels, both included; boxes whose x2, y2 lie one further need no such 1 and have the same IoU.

n  detections of one class in all images, best score first;  G  objects of it that count.
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
    IGNORED = 2  # hits a difficult object, or lies in a crowd


@dataclass(frozen=True)
class Matches:
    """What became of the detections of one class, best score first.

    scores float [n];  outcomes int [n] of Outcome;  images, rows int [n]: the row of which image's prediction;
    targets int [n]: the row of the image's object of that class that it overlaps most, -1 for none;
    overlaps float [n]: their IoU;  objects: G.
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
    VOC_AP_11_by_class (the mean at eleven recalls: VOC 2007), and VOC_curves, a Curve by class. A class without an
    object that counts is None, has no curve and is left out of the means, which are None if no class is left.
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
    """Holds the detections of one class against its objects. Equal scores stay in the order of the images."""
    parts = [_match_image(sample, prediction, label) for sample, prediction in zip(samples, predictions, strict=True)]
    images = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    empty = (np.zeros(0), np.zeros(0, int), np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    scores, outcomes, rows, targets, overlap = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
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
    # a crowd's box says nothing of the size of one of its members, so that IoU would punish them (COCO's rule)
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
    """The area under precision over recall, where precision is the best at that recall or any higher (VOC 2010 on).

    hits: int [n], how many of the first detections hit;  precision: float [n];  objects: G > 0.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0) * envelope) / objects)


def eleven_points(hits: np.ndarray, precision: np.ndarray, objects: int) -> float:
    """The mean over recalls 0, 0.1, …, 1 of the best precision at that recall or any higher (VOC 2007).

    Arguments as of `area_under`. Recalls are compared as whole numbers: as floats, three of ten objects fall short of
    three times 0.1.
    """
    best = [precision[10 * hits >= tenth * objects].max(initial=0.0) for tenth in range(11)]
    return float(np.mean(best))


def _mean(by_class: dict[str, float | None]) -> float | None:
    known = [value for value in by_class.values() if value is not None]
    return float(np.mean(known)) if known else None
