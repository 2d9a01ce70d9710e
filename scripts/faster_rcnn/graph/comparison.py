"""Compares what two runtimes found in the same images, box by box.

R  boxes of one image.
"""

from dataclasses import dataclass

import numpy as np

from faster_rcnn.detector.detector import DetectorOutput
from faster_rcnn.graph.precision import Precision

DETECTIONS, PROPOSALS = "detections", "proposals"


class Disagreement(ValueError):  # noqa: N818  the word for it
    """The graph's answer differs from the expected one; the message says where and by how much."""


@dataclass(frozen=True)
class Tolerance:
    """How far two answers may differ.

    box: of a corner, in pixels of the canvas;  score: in probability;
    unmatched: the share of all boxes that may have no partner. Two runtimes differ in the last bits, so NMS
    occasionally decides differently about an overlap near its threshold.
    """

    box: float
    score: float
    unmatched: float = 0.0


TO_PYTORCH: dict[Precision, Tolerance] = {"fp32": Tolerance(0.1, 1e-3, 0.005), "fp16": Tolerance(2.0, 0.05, 0.05)}
# On another canvas the last bits may differ: on a pyramid they depend on where a map lies on RoIAlign's sheet. They may
# reverse ties, and in float16 round to the neighbouring number. A leak of padding moves one box in ten.
TO_ALONE: dict[Precision, Tolerance] = {"fp32": Tolerance(0.01, 1e-4, 0.002), "fp16": Tolerance(0.1, 1e-3, 0.002)}


@dataclass(frozen=True)
class Boxes:
    """boxes [R, 4], scores [R], labels [R];  cut: the score that the last box had to pass to be kept."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    cut: float


def boxes_of(answer: DetectorOutput, kind: str, floor: float) -> Boxes:
    """The DETECTIONS or PROPOSALS of one image's answer, without padding rows.

    floor: the score that each had to pass. If all rows are in use, the lowest score of them is the higher bar.
    """
    if kind == DETECTIONS:
        count = int(answer.num_detections)
        boxes, scores, labels = np.asarray(answer.boxes), np.asarray(answer.scores), np.asarray(answer.labels)
    else:
        count = int(answer.num_proposals)
        boxes, scores = np.asarray(answer.proposals), np.asarray(answer.objectness)
        labels = np.zeros(len(scores), np.int64)
    full = count == len(scores)
    cut = float(scores.min()) if full and count else floor
    return Boxes(boxes[:count], scores[:count], labels[:count], cut)


@dataclass(frozen=True)
class Difference:
    """How far the boxes of two answers differ.

    box, score: the largest differences between matched boxes;  unmatched: how many boxes of either answer have no
    partner in the other, so that a box that has moved counts twice;  boxes: of both answers;
    missed_by: the distance from such a box to the nearest one with the same label, in pixels; the largest of them, and
    infinity if there is none with the same label.
    """

    box: float = 0.0
    score: float = 0.0
    unmatched: int = 0
    missed_by: float = 0.0
    boxes: int = 0

    def plus(self, other: "Difference") -> "Difference":
        """The difference over all boxes of both comparisons."""
        return Difference(
            max(self.box, other.box),
            max(self.score, other.score),
            self.unmatched + other.unmatched,
            max(self.missed_by, other.missed_by),
            self.boxes + other.boxes,
        )


def compare(first: Boxes, second: Boxes, tolerance: Tolerance) -> Difference:
    """Matches boxes of the same label, nearest first, in any order of rows: equal scores have no order.

    A box without a partner within the tolerance counts, unless its score is so near the cut that the other runtime may
    have dropped it.
    """
    distance = np.abs(first.boxes[:, None] - second.boxes[None]).max(axis=2, initial=0.0)
    distance = np.where(first.labels[:, None] == second.labels[None], distance, np.inf)
    gap = np.abs(first.scores[:, None] - second.scores[None])
    # the score decides between boxes that lie equally near
    cost = np.where((distance <= tolerance.box) & (gap <= tolerance.score), distance + gap, np.inf)
    free_first, free_second = np.ones(len(first.boxes), bool), np.ones(len(second.boxes), bool)
    box = score = 0.0
    for place in np.argsort(cost, axis=None):
        i, j = np.unravel_index(place, cost.shape)
        if not np.isfinite(cost[i, j]):
            break
        if free_first[i] and free_second[j]:
            free_first[i] = free_second[j] = False
            box, score = max(box, float(distance[i, j])), max(score, float(gap[i, j]))
    cut = max(first.cut, second.cut) + tolerance.score
    lone_first, lone_second = free_first & (first.scores > cut), free_second & (second.scores > cut)
    nearest = np.concatenate(
        [distance[lone_first].min(axis=1, initial=np.inf), distance[:, lone_second].min(axis=0, initial=np.inf)]
    )
    boxes = len(first.boxes) + len(second.boxes)
    return Difference(box, score, len(nearest), float(nearest.max(initial=0.0)), boxes)


class Comparison:
    """Collects the differences from one reference, such as PyTorch.

    boxes: of the answers that are compared with the reference; its own are not counted.
    """

    def __init__(self, reference: str, tolerance: Tolerance) -> None:
        self.reference, self.tolerance = reference, tolerance
        self.boxes = 0
        self.total = Difference()
        self._worst, self._where = Difference(), ""
        self._apart = ""

    def add(self, found: Boxes, expected: Boxes, what: str) -> None:
        """Compares the boxes of one image; `what` names them."""
        self._add(compare(found, expected, self.tolerance), len(found.boxes), what)

    def add_blank(self, found: Boxes, expected: Boxes, what: str) -> None:
        """Compares only the best score. Meant for the proposals in an image of one colour.

        In its middle all anchors tie, so each runtime keeps and suppresses others.
        """
        best = [float(one.scores[0]) if len(one.scores) else 0.0 for one in (found, expected)]
        self._add(Difference(score=abs(best[0] - best[1]), boxes=2), 1, what)

    def _add(self, difference: Difference, boxes: int, what: str) -> None:
        if difference.score > self.tolerance.score and not self._apart:
            self._apart = (
                f"{what} against {self.reference} alone: scores differ by up to {difference.score:.2g}, "
                f"{self.tolerance.score:.2g} is allowed"
            )
        self.boxes += boxes
        self.total = self.total.plus(difference)
        if difference.unmatched > self._worst.unmatched:
            self._worst, self._where = difference, what

    def allowed(self, more: float = 0.0) -> float:
        """How many boxes may have no partner: the tolerated share, and `more`."""
        return self.tolerance.unmatched * self.boxes + more

    def check(self, more: float = 0.0, reason: str = "") -> None:
        """Raises Disagreement if a score differs too much, or if too many boxes have no partner.

        The message names the image with the most of them.
        more: how many boxes may have no partner beyond the tolerated share;  reason: for the message, why so many.
        """
        if self._apart:
            raise Disagreement(self._apart)
        if self.total.unmatched > self.allowed(more):
            raise Disagreement(
                f"{self._where} against {self.reference} alone: {self._worst.unmatched} boxes of one or the other have "
                f"no partner within {self.tolerance.box} pixels and {self.tolerance.score:g} of score, the worst "
                f"misses by {self._worst.missed_by:.3g} (in all images {self.total.unmatched} of {self.total.boxes}; "
                f"{int(self.allowed(more))} are allowed{reason})"
            )
