"""What a detector gets wrong, worst first, and in which way (after Bolya et al. 2020, TIDE, section 2.2).

Of detections from a score on: duplicate (an object that was found before), wrong class (IoU >= 0.5 with an object of
another class), poor localisation (IoU from 0.1 to 0.5 with an object of its class), background (none of these).
Of objects: missed. How bad a mistake is lies between 0 and 1: the score of a false detection; for a missed object 1
less the score of the detection that would have found it, had it been surer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.overlaps import overlaps
from faster_rcnn.evaluation.voc import MIN_OVERLAP, Matches, Outcome, match_class

NEAR = 0.1  # IoU from which a detection is a poor attempt at an object: TIDE's background threshold
KINDS = ("background", "wrong class", "poor localisation", "duplicate", "missed")


@dataclass(frozen=True)
class Mistake:
    """image: its index;  label: of the detection or the missed object;  severity: 0 to 1;  box: float [4];
    caption: what is wrong, for a person;  others: float [R, 4], the objects or detections that the caption speaks of.
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
    """All mistakes of the detections that score at least `threshold`, the worst first.

    Matching is VOC's, so that a false detection here is one that costs VOC's precision; difficult objects and crowds
    are no mistakes either way.
    """
    mistakes = []
    for label in range(len(labels)):
        matches = match_class(truths, predictions, label)
        mistakes += _false_detections(truths, predictions, labels, matches, label, threshold)
        mistakes += _missed_objects(truths, predictions, labels, matches, label, threshold)
    # of two objects that nothing found, missing the larger is the more astonishing
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
        caption = f"{labels[label]} {score:.2f}: {reason}"
        mistakes.append(Mistake(kind, image, label, score, box, caption, others))
    return mistakes


def _explain(truth: Sample, labels: tuple[str, ...], box: np.ndarray, label: int) -> tuple[str, str, np.ndarray]:
    """Kind, reason and the objects in question, of a false detection."""
    overlap = overlaps(box[None], truth.boxes)[0]
    own = np.where(truth.labels == label, overlap, 0.0)
    other = np.where(truth.labels != label, overlap, 0.0)
    near = int(own.argmax()) if len(own) else 0
    wrong = int(other.argmax()) if len(other) else 0
    if own.max(initial=0.0) >= MIN_OVERLAP:
        return "duplicate", "the object has been found by a surer detection", truth.boxes[[near]]
    if other.max(initial=0.0) >= MIN_OVERLAP:
        return "wrong class", f"it is a {labels[truth.labels[wrong]]} (IoU {other[wrong]:.2f})", truth.boxes[[wrong]]
    if own.max(initial=0.0) >= NEAR:
        return "poor localisation", f"IoU with the object is {own[near]:.2f}", truth.boxes[[near]]
    if len(overlap) and overlap.max() >= NEAR:
        reason = f"no such object; IoU with a {labels[truth.labels[wrong]]} is {other[wrong]:.2f}"
        return "background", reason, truth.boxes[[wrong]]
    return "background", "nothing is there", np.zeros((0, 4), np.float32)


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
                reason, others = _why_missed(truth.boxes[row], predictions[image], labels, score, threshold)
                caption = f"{labels[label]} missed: {reason}"
                mistakes.append(Mistake("missed", image, label, 1 - score, truth.boxes[row], caption, others))
    return mistakes


def _why_missed(
    box: np.ndarray, prediction: Prediction, labels: tuple[str, ...], score: float, threshold: float
) -> tuple[str, np.ndarray]:
    """The reason and the detections in question, of an object that nothing found with `threshold`."""
    sure = prediction.scores >= threshold
    boxes = prediction.boxes[sure]
    overlap = overlaps(box[None], boxes)[0]
    best = int(overlap.argmax()) if len(overlap) else 0
    if overlap.max(initial=0.0) >= (MIN_OVERLAP if score > 0 else NEAR):
        name = labels[prediction.labels[sure][best]]
        return f"what overlaps it most is detected as {name} (IoU {overlap[best]:.2f})", boxes[[best]]
    if score > 0:
        return f"found with a score of {score:.2f} only", np.zeros((0, 4), np.float32)
    if prediction.proposals is None:
        return "no detection is near", np.zeros((0, 4), np.float32)
    covered = overlaps(box[None], prediction.proposals)[0].max(initial=0.0)
    return f"no detection is near; the best proposal has IoU {covered:.2f}", np.zeros((0, 4), np.float32)
