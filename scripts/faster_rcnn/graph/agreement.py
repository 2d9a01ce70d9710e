"""Compares a graph's answers in batches with PyTorch's and with its own, for each image alone."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import reduce

from faster_rcnn.detector.detector import DetectorOutput
from faster_rcnn.graph.comparison import DETECTIONS, PROPOSALS, Comparison, Difference, Tolerance, boxes_of

KINDS = (DETECTIONS, PROPOSALS)


@dataclass(frozen=True)
class Answer:
    """What the graph found in one image of a batch.

    place: of the image in the list of images;  where: names the image and its batch.
    """

    place: int
    where: str
    found: DetectorOutput


@dataclass(frozen=True)
class References:
    """What PyTorch and the graph found in each image alone.

    score_floor: the score that a detection must pass;  blanks: places of images of one colour. In their middle all
    anchors tie, so each runtime keeps and suppresses others, and only the best proposal is compared.
    """

    by_pytorch: Sequence[DetectorOutput]
    by_graph: Sequence[DetectorOutput]
    score_floor: float
    blanks: Set[int]

    def floor(self, kind: str) -> float:
        """The score that each of the DETECTIONS or PROPOSALS had to pass."""
        return self.score_floor if kind == DETECTIONS else 0.0


@dataclass(frozen=True)
class Tolerances:
    """How far an answer may differ from PyTorch's, and from the graph's own for the image alone."""

    to_pytorch: Tolerance
    to_alone: Tolerance


class Agreement:
    """The differences of the graph's answers.

    by_kind: whether detections and proposals are judged separately. There are up to ten times as many proposals, so
    faulty detections could hide among them.
    """

    def __init__(
        self, answers: Sequence[Answer], references: References, tolerances: Tolerances, by_kind: bool
    ) -> None:
        self._comparisons = [
            (Comparison("PyTorch", tolerances.to_pytorch), Comparison("ONNX", tolerances.to_alone))
            for _ in (KINDS if by_kind else KINDS[:1])
        ]
        for answer in answers:
            for number, kind in enumerate(KINDS):
                self._add(answer, kind, references, *self._comparisons[number if by_kind else 0])

    @staticmethod
    def _add(answer: Answer, kind: str, references: References, to_pytorch: Comparison, to_alone: Comparison) -> None:
        found, of_pytorch, by_itself = (
            boxes_of(one, kind, references.floor(kind))
            for one in (answer.found, references.by_pytorch[answer.place], references.by_graph[answer.place])
        )
        what = f"{kind} of {answer.where}"
        if answer.place not in references.blanks:
            to_pytorch.add(found, of_pytorch, what)
        elif kind == PROPOSALS:
            to_pytorch.add_blank(found, of_pytorch, what)
        to_alone.add(found, by_itself, what)

    def check(self) -> None:
        """Raises Disagreement if an answer differs too much."""
        for to_pytorch, to_alone in self._comparisons:
            to_pytorch.check()
            to_alone.check()

    @property
    def boxes(self) -> int:
        return sum(to_alone.boxes for _, to_alone in self._comparisons)

    @property
    def to_pytorch(self) -> Difference:
        return reduce(Difference.plus, (one.total for one, _ in self._comparisons))

    @property
    def to_alone(self) -> Difference:
        return reduce(Difference.plus, (one.total for _, one in self._comparisons))
