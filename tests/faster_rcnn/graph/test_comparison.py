"""How the boxes of two answers are matched."""

import numpy as np
import pytest

from faster_rcnn.graph.comparison import Boxes, Comparison, Difference, Disagreement, Tolerance, compare
from faster_rcnn.graph.verification import TO_PYTORCH


def boxes(rows: list[list[float]], scores: list[float], labels: list[int]) -> Boxes:
    return Boxes(np.array(rows, float).reshape(-1, 4), np.array(scores), np.array(labels), cut=0.05)


def test_boxes_are_matched_whatever_their_order() -> None:
    first = boxes([[0, 0, 10, 10], [5, 5, 9, 9]], [0.5, 0.5], [0, 1])
    second = boxes([[5, 5, 9, 9.05], [0, 0, 10, 10]], [0.5, 0.4995], [1, 0])
    difference = compare(first, second, TO_PYTORCH["fp32"])
    assert difference.unmatched == 0
    assert difference.box == pytest.approx(0.05)
    assert difference.score == pytest.approx(0.0005)


def test_a_box_has_no_partner_if_the_label_differs_or_the_other_box_is_missing() -> None:
    one = boxes([[0, 0, 10, 10]], [0.9], [0])
    assert compare(one, boxes([[0, 0, 10, 10]], [0.9], [1]), TO_PYTORCH["fp32"]).unmatched == 2
    assert compare(one, boxes([], [], []), TO_PYTORCH["fp32"]).unmatched == 1
    moved = compare(one, boxes([[0, 0, 10, 10.2]], [0.9], [0]), TO_PYTORCH["fp32"])
    assert moved.unmatched == 2
    assert moved.missed_by == pytest.approx(0.2)
    # a box at the score floor may be there in one and not in the other
    assert compare(boxes([[0, 0, 10, 10]], [0.0505], [0]), boxes([], [], []), TO_PYTORCH["fp32"]) == Difference(boxes=1)


def test_a_comparison_allows_a_share_of_boxes_without_a_partner() -> None:
    comparison = Comparison("PyTorch", Tolerance(0.1, 1e-3, unmatched=0.1))
    ten = boxes([[0, 0, 10, 10 + 20 * n] for n in range(10)], [0.9] * 10, [0] * 10)
    nine = Boxes(ten.boxes[:9], ten.scores[:9], ten.labels[:9], cut=0.05)
    comparison.add(ten, nine, "detections of image 0")
    comparison.check()  # 1 of 10 is a tenth
    comparison.add(nine, ten, "detections of image 1")  # 2 of 19 are more
    words = r"image 0 against PyTorch alone: 1 boxes .* \(in all images 2 of 38; 1 are allowed\)"  # 38: of both answers
    with pytest.raises(Disagreement, match=words):
        comparison.check()


def test_a_comparison_refuses_scores_that_differ() -> None:
    comparison = Comparison("ONNX", Tolerance(0.1, 0.01))
    comparison.add_blank(boxes([[0, 0, 1, 1]], [0.9], [0]), boxes([[5, 5, 6, 6]], [0.6], [0]), "image 3")
    with pytest.raises(Disagreement, match=r"image 3 against ONNX alone: .* by up to 0\.3, 0\.01 is allowed"):
        comparison.check()
