"""Judges a graph by the rounding of the model that it was exported from.

The last bits of float32 differ between PyTorch and ONNX Runtime. Some models amplify them: a few of a hundred boxes
that such a model finds in float32 are not among those that it finds in float64. No graph of such a model can return the
same boxes as PyTorch. Therefore both float32 answers, the graph's and PyTorch's, are compared with PyTorch's answer in
float64, and the graph may differ from it at most FACTOR times as often as PyTorch does.

Rounding changes boxes in a few images only, often those of noise. A wrong graph differs in all images. Therefore the
graph is judged once more on the steady images, those in which all of PyTorch's boxes have partners in float64. There it
may differ at most STEADY_FACTOR times as often as PyTorch does in all images.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from faster_rcnn.detector.detector import DetectorOutput
from faster_rcnn.graph.agreement import KINDS, Answer, References, Tolerances
from faster_rcnn.graph.comparison import PROPOSALS, Boxes, Comparison, Difference, Disagreement, Tolerance, boxes_of
from faster_rcnn.graph.exportable import Exportable

# With calibrated random weights, the detections of fasterrcnn_mobilenet_v3_large_fpn's graph differed from float64 1.6
# times as often as PyTorch's; those of fasterrcnn_mobilenet_v3_large_320_fpn and fasterrcnn_resnet50_fpn no more often.
FACTOR = 2.0
STEADY_FACTOR = 0.5  # finds two swapped classes of ninety, which FACTOR alone does not


@dataclass(frozen=True)
class Rounding:
    """How far float32 answers, the graph's and PyTorch's, differ from PyTorch's answers in float64.

    All figures leave out images of one colour, in which anchors tie.
    boxes: of the graph;  graph, pytorch: the differences from float64;  allowed: the limit of `graph.unmatched`;
    steady: as `graph.unmatched`, in the steady images only;  allowed_steady: its limit;  to_alone: how far the graph's
    answers in batches differ from its own for each image alone.
    """

    boxes: int
    graph: Difference
    pytorch: Difference
    allowed: int
    steady: int
    allowed_steady: int
    to_alone: Difference


def answers_in_float64(detector: Exportable, images: Sequence[np.ndarray]) -> list[DetectorOutput] | None:
    """The detector's answers for images before resizing, uint8 [H, W, 3]; None if it cannot compute in float64."""
    exact = copy.deepcopy(detector).double()
    try:
        return [exact.alone_resized(image) for image in tqdm(images, "PyTorch in float64, each alone", leave=False)]
    except RuntimeError:  # a layer of the user's own that computes in float32 only
        return None


def one_colour(image: np.ndarray) -> bool:
    """Whether all pixels of an image [H, W, 3] are equal."""
    return bool((image == image[:1, :1]).all())


def judge(
    answers: Sequence[Answer], references: References, exact: Sequence[DetectorOutput], tolerances: Tolerances
) -> dict[str, Rounding]:
    """Judges the detections and the proposals of a graph separately, and returns the figures of each.

    references: in float32;  exact: PyTorch's answers for each image alone, in float64.
    Raises Disagreement if the graph's answers differ from `exact` more than FACTOR times as often as PyTorch's float32
    answers do, beyond the tolerated share; if they differ too often in the steady images; or if they differ from the
    graph's own for the image alone more often than the tolerated share and PyTorch's rounding explain.
    """
    return {kind: _judge(kind, answers, references, exact, tolerances) for kind in KINDS}


def _judge(
    kind: str,
    answers: Sequence[Answer],
    references: References,
    exact: Sequence[DetectorOutput],
    tolerances: Tolerances,
) -> Rounding:
    graph, steady, pytorch = (Comparison("PyTorch in float64", tolerances.to_pytorch) for _ in range(3))
    itself = Comparison("ONNX", tolerances.to_alone)
    for answer in answers:
        found, rounded, right, alone = (
            boxes_of(one, kind, references.floor(kind))
            for one in (
                answer.found,
                references.by_pytorch[answer.place],
                exact[answer.place],
                references.by_graph[answer.place],
            )
        )
        what = f"{kind} of {answer.where}"
        if answer.place not in references.blanks:
            graph.add(found, right, what)
            before = pytorch.total.unmatched
            pytorch.add(rounded, right, what)
            if pytorch.total.unmatched == before:
                steady.add(found, right, what)
            itself.add(found, alone, what)
        elif kind == PROPOSALS:
            _check_best(found, rounded, right, tolerances.to_pytorch, what)
    own = pytorch.total.unmatched
    of_rounding = f"between PyTorch in float32 and in float64 {own} of {pytorch.total.boxes} have none"
    graph.check(FACTOR * own, f", because {of_rounding}")
    steady.check(STEADY_FACTOR * own, "; counted only where all boxes of PyTorch in float32 have a partner")
    # on another canvas the last bits may differ as much as those of float32 and float64
    itself.check(own, f", because {of_rounding}")
    return Rounding(
        boxes=graph.boxes,
        graph=graph.total,
        pytorch=pytorch.total,
        allowed=int(graph.allowed(FACTOR * own)),
        steady=steady.total.unmatched,
        allowed_steady=int(steady.allowed(STEADY_FACTOR * own)),
        to_alone=itself.total,
    )


def _check_best(found: Boxes, rounded: Boxes, exact: Boxes, tolerance: Tolerance, what: str) -> None:
    """Raises Disagreement if the best score in an image of one colour is too far from that in float64."""
    best, of_pytorch, right = (float(one.scores.max(initial=0.0)) for one in (found, rounded, exact))
    allowed = FACTOR * abs(of_pytorch - right) + tolerance.score
    if abs(best - right) > allowed:
        raise Disagreement(
            f"{what} against PyTorch in float64 alone: the best scores differ by {abs(best - right):.2g}, "
            f"{allowed:.2g} is allowed"
        )
