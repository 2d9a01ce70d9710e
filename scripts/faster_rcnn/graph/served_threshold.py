"""Chooses the score threshold of a version that is being published, on validation data, with the version's own graph.

Precision (float16, int8) shifts scores, so the threshold is chosen from the detections of the graph that will be
served. The rule is in `evaluation/threshold.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.detector.limits import Limits
from faster_rcnn.evaluation import Predictor, collect
from faster_rcnn.evaluation.limits import limit_warnings
from faster_rcnn.evaluation.threshold import (
    ASSUMED,
    DEFAULT,
    GIVEN,
    ScoredDetections,
    describe_choice,
    doubts,
    explain_choice,
)

Collected = tuple[Sequence[Sample], Sequence[Prediction]]


@dataclass(frozen=True)
class Validation:
    """The data on which the threshold of a version is chosen.

    name: of `data`, as the card shows it;  limit: use the first images only.
    """

    data: Dataset
    name: str
    limit: int | None = None


@dataclass(frozen=True)
class ServedThreshold:
    """A threshold, and the card's record of how it was chosen (`score_threshold_choice`)."""

    value: float
    record: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def card(self) -> dict[str, Any]:
        return {"score_threshold": self.value, "score_threshold_choice": self.record}

    def report(self) -> str:
        """The choice and the warnings, a line each."""
        lines = [explain_choice(self.value, self.record)]
        lines += [f"warning: {doubt}" for doubt in doubts(self.value, self.record)]
        return "\n".join([*lines, *self.warnings])


def without_data(given: float | None) -> ServedThreshold:
    """The threshold that the user named, or else the assumed one."""
    if given is not None:
        return ServedThreshold(given, {"rule": GIVEN})
    return ServedThreshold(ASSUMED, {"rule": DEFAULT})


def on_validation(
    validation: Validation,
    predict: Predictor,
    given: float | None,
    limits: Limits | None,
    done: Collected | None = None,
) -> ServedThreshold:
    """The threshold that the user named, measured on the validation data, or else the one that the rule chooses there.

    limits: of the detector;  done: the samples and predictions of `validation`, if they were collected before.
    """
    truths, predictions = done or collect(validation.data, predict, validation.limit)
    found = ScoredDetections.match(truths, predictions, len(validation.data.labels))
    value, record = describe_choice(found, validation.name, given)
    exceeded = limit_warnings(truths, predictions, value, limits, f"images of {validation.name}")
    return ServedThreshold(value, record, tuple(exceeded))
