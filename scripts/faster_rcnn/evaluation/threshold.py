"""The score threshold that a service should use by default: chosen on validation data, with how sure the choice is.

The rule: of all thresholds, take the one with the highest F1 = 2 · precision · recall / (precision + recall), counted
over all classes together at IoU 0.5 (van Rijsbergen 1979, chapter 7: the F measure with equal weights). Matching is
VOC's (`voc.py`). Of equal F1 the higher precision wins. The threshold lies halfway between the lowest score that it
keeps and the highest score that it drops, on the shortest decimal fraction there, so that rounding on another machine
does not change the result.

How sure the choice is follows from a bootstrap (Efron and Tibshirani 1993, chapter 13): the images are drawn again with
replacement, and the rule is applied to each drawing. The range holds the middle 90 % of these thresholds.

n  detections that count, of all classes and images, best score first;  G  objects that count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.voc import Outcome, match_class

BEST_F1, GIVEN, DEFAULT = "highest F1 at IoU 0.5", "given", "assumed"  # values of `rule` in the record
ASSUMED = 0.5  # without validation data: few false detections from a detector that was trained to the end
DRAWINGS = 200  # of the bootstrap
FEW_OBJECTS = 100  # with fewer objects, recall has a standard error of up to 5 points
SMALL_SHARE = 0.25  # of the objects that are found at any score


class Counts(NamedTuple):
    """What a threshold keeps: hits and detections that count, of G objects."""

    hits: int
    detections: int
    objects: int

    @property
    def precision(self) -> float:
        return self.hits / self.detections if self.detections else 0.0

    @property
    def recall(self) -> float:
        return self.hits / self.objects if self.objects else 0.0

    @property
    def f1(self) -> float:
        together = self.detections + self.objects
        return 2 * self.hits / together if together else 0.0


@dataclass(frozen=True)
class ScoredDetections:
    """The detections that count, of all classes.

    scores: float [n], descending;  hits: bool [n];  images: int [n], the index of the image;  objects: int [images],
    the number of objects of each image that count.
    """

    scores: np.ndarray
    hits: np.ndarray
    images: np.ndarray
    objects: np.ndarray

    @classmethod
    def match(cls, truths: Sequence[Sample], predictions: Sequence[Prediction], classes: int) -> "ScoredDetections":
        """Matches the predictions with the objects of their class."""
        parts = []
        for label in range(classes):
            found = match_class(truths, predictions, label)
            counts = found.outcomes != Outcome.IGNORED
            parts.append((found.scores[counts], found.outcomes[counts] == Outcome.HIT, found.images[counts]))
        scores, hits, images = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(-scores, kind="stable")
        objects = np.array([int(truth.counted().sum()) for truth in truths], int)
        return cls(scores[order], hits[order], images[order], objects)

    def at(self, threshold: float) -> Counts:
        """What is kept of the scores that are at least `threshold`."""
        kept = int((self.scores >= threshold).sum())
        return Counts(int(self.hits[:kept].sum()), kept, int(self.objects.sum()))

    def best(self) -> float | None:
        """The threshold of the rule; None if no detection is a hit, so that every threshold has an F1 of 0."""
        place = self._best_place(np.ones(len(self.objects), int))
        if place is None:
            return None
        dropped = float(self.scores[place + 1]) if place + 1 < len(self.scores) else 0.0
        return between(dropped, float(self.scores[place]))

    def spread(self) -> tuple[float, float] | None:
        """The middle 90 % of the lowest scores that the rule keeps if the images are drawn again; None without hits."""
        if not self.hits.any():
            return None
        images = len(self.objects)
        drawings = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), DRAWINGS)
        places = [self._best_place(drawing) for drawing in drawings]
        scores = [float(self.scores[place]) for place in places if place is not None]
        if not scores:
            return None
        low, high = np.quantile(scores, [0.05, 0.95])
        return float(low), float(high)

    @cached_property
    def _ends(self) -> np.ndarray:
        """The last place of each run of equal scores. A threshold keeps all of them or none."""
        return np.flatnonzero(np.append(np.diff(self.scores) != 0, True)) if len(self.scores) else np.zeros(0, int)

    def _best_place(self, times: np.ndarray) -> int | None:
        """The place of the last detection that the rule keeps, if each image occurs so many `times`, int [images]."""
        weights = times[self.images]
        hits = np.cumsum(weights * self.hits)[self._ends]
        kept = np.cumsum(weights)[self._ends]
        if not hits.any():
            return None
        # Divisions are rounded correctly, so equal fractions are equal floats.
        f1 = 2 * hits / (kept + (times * self.objects).sum())
        precision = hits / np.maximum(kept, 1)
        first = -self._ends  # a drawing may leave out an image, whose detections then change nothing
        return int(self._ends[np.lexsort((first, precision, f1))[-1]])


def between(low: float, high: float) -> float:
    """The shortest decimal fraction, of two digits or more, in the middle half of the range from `low` to `high`.

    If the two are next to each other in float32, in which detectors compute scores, it is `high`.
    """
    quarter = (high - low) / 4
    for digits in range(2, 9):
        value = round((low + high) / 2, digits)
        if low + quarter <= value <= high - quarter and np.float32(low) < np.float32(value):
            return value
    return high


def describe_choice(found: ScoredDetections, data: str, given: float | None = None) -> tuple[float, dict[str, Any]]:
    """The threshold to serve with, and the card's record of how it was chosen.

    given: a threshold that the user named, which is then used;  data: the name of the validation data.
    """
    best = found.best()
    threshold = given if given is not None else ASSUMED if best is None else best
    rule = GIVEN if given is not None else DEFAULT if best is None else BEST_F1
    counts, spread = found.at(threshold), found.spread() if rule == BEST_F1 else None
    record: dict[str, Any] = {
        "rule": rule,
        "data": data,
        "images": len(found.objects),
        "objects": counts.objects,
        "F1": round(counts.f1, 4),
        "precision": round(counts.precision, 4),
        "recall": round(counts.recall, 4),
        "detections": counts.detections,
        "objects_found": counts.hits,
        "objects_found_at_any_score": found.at(0.0).hits,
    }
    if spread is not None:
        record["range"] = [round(score, 4) for score in spread]
    if rule == GIVEN and best is not None:
        record["best"] = {"score_threshold": best, "F1": round(found.at(best).f1, 4)}
    return threshold, record


def explain_choice(threshold: float, record: dict[str, Any], given_by: str = "") -> str:
    """The choice in a sentence, for a person;  given_by: where a given threshold comes from, by default the user."""
    if "data" not in record:
        no_data = "assumed, because there is no validation data; name --data to choose it, or set --score-threshold"
        return f"score threshold {threshold:g}: {'given' if record['rule'] == GIVEN else no_data}"
    figures = f"F1 {record['F1']:.3f}, precision {record['precision']:.3f}, recall {record['recall']:.3f}"
    where = f"on {record['data']} ({_number(record['images'], 'image')}, {_number(record['objects'], 'object')})"
    if record["rule"] == DEFAULT:
        why = f"the model finds no object {where} at any score" if record["objects"] else f"there is no object {where}"
        return f"score threshold {threshold:g}: assumed, because {why}"
    how = given_by or "given" if record["rule"] == GIVEN else f"the {record['rule']}"
    sure = ""
    if "range" in record:
        low, high = record["range"]
        sure = f"; other images of the same kind would give {low:.2f} to {high:.2f} (nine times in ten)"
    if "best" in record:
        best = record["best"]
        sure = f"; the highest F1 there is {best['F1']:.3f}, at {best['score_threshold']:g}"
    return f"score threshold {threshold:g}: {how}; {where}: {figures}{sure}"


def doubts(threshold: float, record: dict[str, Any]) -> list[str]:
    """Warnings about a threshold: the model returns little or nothing at it, or the data are too few to choose it."""
    warnings: list[str] = []
    if "data" not in record:
        return warnings
    kept, found, data = record["objects_found"], record["objects_found_at_any_score"], record["data"]
    if record["objects"] == 0:
        warnings.append(f"{data} has no objects, so the score threshold cannot be chosen; name other validation data")
    elif found == 0:
        warnings.append(f"the model finds none of the {record['objects']} objects of {data}; train it longer")
    elif kept < SMALL_SHARE * found:
        remedy = "train the model longer, or name a lower --score-threshold"
        if "best" in record:
            remedy = f"{record['best']['score_threshold']:g} would give an F1 of {record['best']['F1']:.3f}"
        nothing = "nothing: " if record["detections"] == 0 else ""
        warnings.append(
            f"at a score threshold of {threshold:g} the model returns {nothing}{kept} of the {found} objects that it "
            f"finds on {data} at lower scores; {remedy}"
        )
    if record["rule"] == BEST_F1 and record["objects"] < FEW_OBJECTS:
        warnings.append(
            f"{data} has only {_number(record['objects'], 'object')}, so the score threshold is uncertain; name more "
            "validation data, or set --score-threshold"
        )
    return warnings


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
