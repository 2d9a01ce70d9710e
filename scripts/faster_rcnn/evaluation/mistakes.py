"""Finds the mistakes of a detector and sorts them by severity (after Bolya et al. 2020, TIDE, section 2.2).

False detections are of four kinds. A duplicate matches an object that was found before. A wrong class has IoU >= 0.5
with an object of another class. A poor localisation has an IoU from 0.1 to 0.5 with an object of its own class. All
others are background. An object that no detection finds is missed.

Severity is between 0 and 1. For a false detection it is the score. For a missed object it is 1 minus the score of the
detection that would have found it at a lower threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.overlaps import overlaps
from faster_rcnn.evaluation.voc import MIN_OVERLAP, Matches, Outcome, match_class

NEAR = 0.1  # TIDE's background threshold: below this IoU a detection does not belong to the object
KINDS = ("background", "wrong class", "poor localisation", "duplicate", "missed")


@dataclass(frozen=True)
class Mistake:
    """A false detection or a missed object, with its label and its box, float [4].

    kind: one of KINDS;  image: its index in the data set;  severity: 0 to 1;  caption: the explanation in the report;
    others: float [R, 4], the objects or detections that the caption mentions.
    """

    kind: str
    image: int
    label: int
    severity: float
    box: np.ndarray
    caption: str
    others: np.ndarray


def find_mistakes(
    truths: Sequence[Sample], predictions: Sequence[Prediction], labels: tuple[str, ...], threshold: float
) -> list[Mistake]:
    """All mistakes at a score threshold, worst first. Each caption names the threshold.

    A detection below `threshold` is not a false detection, and finds nothing. It is mentioned where it lies at a missed
    object. Matching is VOC's, so a false detection here is one that lowers VOC's precision. Difficult objects and
    crowds are never mistakes, whether found or not.
    """
    mistakes = []
    for label in range(len(labels)):
        matches = match_class(truths, predictions, label)
        mistakes += _false_detections(truths, predictions, labels, matches, label, threshold)
        mistakes += _missed_objects(truths, predictions, labels, matches, label, threshold)
    # Among the objects that no detection found, larger ones come first.
    return sorted(mistakes, key=lambda one: (-one.severity, -float(np.prod(one.box[2:] - one.box[:2]))))


def _false_detections(
    truths: Sequence[Sample],
    predictions: Sequence[Prediction],
    labels: tuple[str, ...],
    matches: Matches,
    label: int,
    threshold: float,
) -> list[Mistake]:
    mistakes = []
    for place in np.flatnonzero((matches.outcomes == Outcome.FALSE) & (matches.scores >= threshold)):
        image = int(matches.images[place])
        box = predictions[image].boxes[matches.rows[place]]
        kind, reason, others = _explain(truths[image], labels, box, label)
        score = float(matches.scores[place])
        caption = f"{labels[label]} {score:.2f} (threshold {threshold:g}): {reason}"
        mistakes.append(Mistake(kind, image, label, score, box, caption, others))
    return mistakes


def _explain(truth: Sample, labels: tuple[str, ...], box: np.ndarray, label: int) -> tuple[str, str, np.ndarray]:
    """The kind of a false detection, the reason for it, and the objects that the reason mentions."""
    overlap = overlaps(box[None], truth.boxes)[0]
    own = np.where(truth.labels == label, overlap, 0.0)
    other = np.where(truth.labels != label, overlap, 0.0)
    near = int(own.argmax()) if len(own) else 0
    wrong = int(other.argmax()) if len(other) else 0
    if own.max(initial=0.0) >= MIN_OVERLAP:
        return "duplicate", "a detection with a higher score has already found this object", truth.boxes[[near]]
    if other.max(initial=0.0) >= MIN_OVERLAP:
        return (
            "wrong class",
            f"the object is labelled {labels[truth.labels[wrong]]} (IoU {other[wrong]:.2f})",
            truth.boxes[[wrong]],
        )
    if own.max(initial=0.0) >= NEAR:
        return "poor localisation", f"IoU with the object is {own[near]:.2f}", truth.boxes[[near]]
    if len(overlap) and overlap.max() >= NEAR:
        reason = f"not an object; the nearest is labelled {labels[truth.labels[wrong]]} (IoU {other[wrong]:.2f})"
        return "background", reason, truth.boxes[[wrong]]
    return "background", "there is no object here", np.zeros((0, 4), np.float32)


def _missed_objects(
    truths: Sequence[Sample],
    predictions: Sequence[Prediction],
    labels: tuple[str, ...],
    matches: Matches,
    label: int,
    threshold: float,
) -> list[Mistake]:
    hits = matches.outcomes == Outcome.HIT
    found = {
        (image, target): score
        for image, target, score in zip(
            matches.images[hits].tolist(), matches.targets[hits].tolist(), matches.scores[hits].tolist(), strict=True
        )
    }
    mistakes = []
    for image, truth in enumerate(truths):
        for row in np.flatnonzero((truth.labels == label) & truth.counted()).tolist():
            score = found.get((image, row), 0.0)
            if score < threshold:
                seen = truth.boxes[row], label, predictions[image], labels
                reason, others = _why_missed(*seen, score, threshold)
                caption = f"{labels[label]} missed at threshold {threshold:g}: {reason}"
                mistakes.append(Mistake("missed", image, label, 1 - score, truth.boxes[row], caption, others))
    return mistakes


def _why_missed(
    box: np.ndarray,
    label: int,
    prediction: Prediction,
    labels: tuple[str, ...],
    score: float,
    threshold: float,
) -> tuple[str, np.ndarray]:
    """The reason why no detection above `threshold` found an object, and the detections that the reason mentions.

    box, label: of the object;  score: of the detection that would have found it at a lower threshold, 0 if there is
    none.
    """
    sure = prediction.scores >= threshold
    boxes = prediction.boxes[sure]
    overlap = overlaps(box[None], boxes)[0]
    best = int(overlap.argmax()) if len(overlap) else 0
    if overlap.max(initial=0.0) >= (MIN_OVERLAP if score > 0 else NEAR):
        detected = int(prediction.labels[sure][best])
        return _what_was_detected(label, detected, labels, float(overlap[best])), boxes[[best]]
    if score > 0:
        return f"the best detection there scored {score:.2f}, below {threshold:g}", np.zeros((0, 4), np.float32)
    if (weak := _best_below(box, prediction, threshold)) is not None:
        name, iou = labels[prediction.labels[weak]], overlaps(box[None], prediction.boxes[[weak]])[0, 0]
        scored = f"scored {prediction.scores[weak]:.2f}, below {threshold:g}"
        return f"the best detection there ({name}, IoU {iou:.2f}) {scored}", prediction.boxes[[weak]]
    if prediction.proposals is None:
        return "no detection is near", np.zeros((0, 4), np.float32)
    covered = overlaps(box[None], prediction.proposals)[0].max(initial=0.0)
    return f"no detection is near; the best proposal has IoU {covered:.2f}", np.zeros((0, 4), np.float32)


def _what_was_detected(label: int, detected: int, labels: tuple[str, ...], iou: float) -> str:
    """Why a detection of the class `detected`, above the threshold, did not find an object of the class `label`."""
    if label != detected:
        return f"detected as {labels[detected]} instead (IoU {iou:.2f})"
    if iou < MIN_OVERLAP:
        return f"the {labels[label]} detected there overlaps it too little (IoU {iou:.2f})"
    return f"the {labels[label]} detected there overlaps another object more (IoU {iou:.2f})"


def _best_below(box: np.ndarray, prediction: Prediction, threshold: float) -> int | None:
    """The row of the best detection below `threshold` at an object, of any class; None if there is none near it.

    The best is the one with the highest score among those with IoU >= 0.5 or, without these, IoU >= 0.1.
    """
    overlap = overlaps(box[None], prediction.boxes)[0] * (prediction.scores < threshold)
    for least in (MIN_OVERLAP, NEAR):
        near = np.flatnonzero(overlap >= least)
        if len(near):
            return int(near[prediction.scores[near].argmax()])
    return None
