"""VOC's average precision: cases worked out by hand, and a comparison with the definition in plain loops."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.overlaps import overlaps
from faster_rcnn.evaluation.voc import Outcome, match_class, voc_ap

LABELS = ("cat", "dog")
BOX = [10.0, 10.0, 50.0, 50.0]
FAR = [60.0, 60.0, 90.0, 90.0]
NOWHERE = [0.0, 90.0, 5.0, 99.0]


def truth(
    boxes: list[list[float]], labels: list[int] | None = None, difficult: list[bool] | None = None, **more: np.ndarray
) -> Sample:
    return Sample(
        np.zeros((100, 100, 3), np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([0] * len(boxes) if labels is None else labels, np.int64),
        difficult=None if difficult is None else np.array(difficult, bool),
        **more,
    )


def found(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> Prediction:
    return Prediction(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array([0] * len(boxes) if labels is None else labels, np.int64),
    )


def cats(samples: list[Sample], predictions: list[Prediction]) -> tuple[float | None, float | None]:
    """The AP of the class `cat` by both rules: area, eleven points."""
    result = voc_ap(samples, predictions, LABELS)
    return result["VOC_AP_by_class"]["cat"], result["VOC_AP_11_by_class"]["cat"]


def test_ap_is_one_by_both_rules_if_exactly_the_objects_are_found() -> None:
    assert cats([truth([BOX, FAR])], [found([FAR, BOX], [0.3, 0.9])]) == (1.0, 1.0)


def test_a_false_detection_between_two_hits_lowers_precision() -> None:
    # hit, false, hit: recall 1/2, 1/2, 1 at precision 1, 1/2, 2/3
    # area: 1/2 · 1 + 1/2 · 2/3 = 5/6;  eleven points: 0 … 0.5 at 1 (six), 0.6 … 1 at 2/3 (five): (6 + 10/3) / 11
    area, eleven = cats([truth([BOX, FAR])], [found([BOX, NOWHERE, FAR], [0.9, 0.8, 0.7])])
    assert area == pytest.approx(5 / 6)
    assert eleven == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_finding_half_of_the_objects_reaches_six_of_eleven_points() -> None:
    # Recall 1/2 is reached at precision 1 and never exceeded: the area is 1/2, and six points (0 … 0.5) are 1.
    assert cats([truth([BOX, FAR])], [found([BOX], [0.9])]) == (pytest.approx(1 / 2), pytest.approx(6 / 11))


def test_finding_three_of_ten_objects_reaches_the_point_at_recall_0_3() -> None:
    # In floats 3/10 is less than 3 · 0.1. The points that count are 0, 0.1, 0.2 and 0.3.
    row = [[10.0 * place, 0.0, 10.0 * place + 8, 8.0] for place in range(10)]
    area, eleven = cats([truth(row)], [found(row[:3], [0.9, 0.8, 0.7])])
    assert area == pytest.approx(3 / 10)
    assert eleven == pytest.approx(4 / 11)


def test_the_second_detection_of_an_object_is_false() -> None:
    # hit, false (duplicate), hit: the same AP as if the second lay in the background
    twice = found([BOX, [11.0, 10.0, 51.0, 50.0], FAR], [0.9, 0.8, 0.7])
    assert cats([truth([BOX, FAR])], [twice])[0] == pytest.approx(5 / 6)
    matches = match_class([truth([BOX, FAR])], [twice], 0)
    assert matches.outcomes.tolist() == [Outcome.HIT, Outcome.FALSE, Outcome.HIT]
    assert matches.targets.tolist() == [0, 0, 1]


def test_a_detection_is_matched_with_the_object_that_it_overlaps_most_even_if_that_was_hit_before() -> None:
    # 40 × 40 objects 8 apart: IoU 32/48 = 0.667. Both detections overlap the first object most.
    # COCO would match the second detection with the other object; VOC calls it a duplicate.
    objects = truth([[0, 0, 40, 40], [8, 0, 48, 40]])
    detections = found([[0, 0, 40, 40], [2, 0, 42, 40]], [0.9, 0.8])
    assert match_class([objects], [detections], 0).outcomes.tolist() == [Outcome.HIT, Outcome.FALSE]
    assert cats([objects], [detections])[0] == pytest.approx(1 / 2)


def test_an_overlap_of_exactly_one_half_is_enough() -> None:
    # A 10 × 10 box and its upper half have IoU 50 / 100; with one row less it is 40 / 100.
    assert cats([truth([[0, 0, 10, 10]])], [found([[0, 0, 10, 5]], [0.9])])[0] == 1.0
    assert cats([truth([[0, 0, 10, 10]])], [found([[0, 0, 10, 4]], [0.9])])[0] == 0.0


def test_detections_of_a_difficult_object_do_not_count() -> None:
    # The two detections of the difficult object are ignored; the only one that counts is a hit.
    objects = truth([BOX, FAR], difficult=[True, False])
    detections = found([BOX, BOX, FAR], [0.9, 0.8, 0.7])
    assert cats([objects], [detections]) == (1.0, 1.0)
    assert match_class([objects], [detections], 0).outcomes.tolist() == [Outcome.IGNORED, Outcome.IGNORED, Outcome.HIT]
    # Missing it does not lower AP, but a false detection elsewhere does: false, hit, so precision is 1/2.
    assert cats([objects], [found([FAR], [0.7])]) == (1.0, 1.0)
    assert cats([objects], [found([NOWHERE, FAR], [0.9, 0.7])])[0] == pytest.approx(1 / 2)


def test_a_detection_inside_a_crowd_is_neither_right_nor_wrong() -> None:
    # the small box has IoU 9/2500 with the crowd, but all of it is inside
    crowd = truth([[0, 0, 50, 50], FAR], crowd=np.array([True, False]))
    assert cats([crowd], [found([[5, 5, 8, 8], FAR], [0.9, 0.8])]) == (1.0, 1.0)
    assert cats([crowd], [found([NOWHERE, FAR], [0.9, 0.8])])[0] == pytest.approx(1 / 2)


def test_equal_scores_keep_the_order_of_the_images() -> None:
    samples = [truth([BOX]), truth([])]
    right, wrong = found([BOX], [0.5]), found([BOX], [0.5])
    assert cats(samples, [right, wrong])[0] == 1.0  # hit, then false
    assert cats(samples[::-1], [wrong, right])[0] == pytest.approx(1 / 2)  # false, then hit


def test_the_scores_of_all_images_are_ranked_together() -> None:
    # In the order of scores: false (0.9, second image), hit (0.8, first image); precision is 0, then 1/2.
    assert cats([truth([BOX]), truth([])], [found([BOX], [0.8]), found([BOX], [0.9])])[0] == pytest.approx(1 / 2)


def test_ap_is_zero_without_detections() -> None:
    assert cats([truth([BOX])], [found([], [])]) == (0.0, 0.0)


def test_the_ap_of_a_class_without_objects_is_none_and_the_mean_ignores_it() -> None:
    result = voc_ap([truth([BOX])], [found([BOX, FAR], [0.9, 0.9], [0, 1])], LABELS)
    assert result["VOC_AP_by_class"] == {"cat": 1.0, "dog": None}
    assert result["VOC_AP_11_by_class"] == {"cat": 1.0, "dog": None}
    assert result["VOC_mAP"] == result["VOC_mAP_11"] == 1.0
    assert set(result["VOC_curves"]) == {"cat"}
    only_difficult = voc_ap([truth([BOX], difficult=[True])], [found([BOX], [0.9])], LABELS)
    assert only_difficult["VOC_mAP"] is None


def test_a_detection_of_another_class_is_never_a_hit() -> None:
    result = voc_ap([truth([BOX, FAR], [0, 1])], [found([BOX, FAR], [0.9, 0.8], [1, 0])], LABELS)
    assert result["VOC_AP_by_class"] == {"cat": 0.0, "dog": 0.0}


def test_the_curve_is_precision_over_recall() -> None:
    curve = voc_ap([truth([BOX, FAR])], [found([BOX, NOWHERE, FAR], [0.9, 0.8, 0.7])], LABELS)["VOC_curves"]["cat"]
    assert curve.recall == pytest.approx([1 / 2, 1 / 2, 1])
    assert curve.precision == pytest.approx([1, 1 / 2, 2 / 3])
    assert curve.scores == pytest.approx([0.9, 0.8, 0.7])


corner = st.integers(1, 30)
devkit_boxes = st.tuples(corner, corner, corner, corner).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@settings(deadline=None)  # a slow machine must not fail this test
@given(devkit_boxes, devkit_boxes)
def test_the_iou_equals_that_of_the_devkit(one: tuple, other: tuple) -> None:
    """The devkit counts pixels from 1 and includes both corners: its x1, y1, x2, y2 are x1 - 1, y1 - 1, x2, y2 here."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    shared = width * height if width > 0 and height > 0 else 0
    area = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    half_open = [np.array([[box[0] - 1, box[1] - 1, box[2], box[3]]], np.float32) for box in (one, other)]
    assert overlaps(*half_open)[0, 0] == pytest.approx(shared / (sum(area) - shared), abs=1e-12)


def slow_ap(samples: list[Sample], predictions: list[Prediction], label: int) -> tuple[float, float] | None:
    """AP by both rules (area, eleven points), computed from the definition with plain loops and exact fractions."""

    def iou(one: list[float], other: list[float]) -> Fraction:
        x1, y1, x2, y2 = (int(value) for value in one)
        u1, v1, u2, v2 = (int(value) for value in other)
        shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
        return Fraction(shared, (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared)

    queue = [
        (float(score), image, box.tolist())
        for image, one in enumerate(predictions)
        for box, score, its_label in zip(one.boxes, one.scores, one.labels, strict=True)
        if its_label == label
    ]
    queue.sort(key=lambda entry: -entry[0])  # Python's sort keeps the order of equal scores
    hard = [one.difficult if one.difficult is not None else [False] * len(one.labels) for one in samples]
    objects = sum(
        its_label == label and not flag
        for one, flags in zip(samples, hard, strict=True)
        for its_label, flag in zip(one.labels, flags, strict=True)
    )
    if objects == 0:
        return None
    seen: set[tuple[int, int]] = set()
    points: list[tuple[Fraction, Fraction]] = []
    hits = false = 0
    for _, image, box in queue:
        best, place = Fraction(-1), -1
        for k in range(len(samples[image].labels)):
            if samples[image].labels[k] == label and iou(box, samples[image].boxes[k].tolist()) > best:
                best, place = iou(box, samples[image].boxes[k].tolist()), k
        if best >= Fraction(1, 2) and hard[image][place]:
            continue
        if best >= Fraction(1, 2) and (image, place) not in seen:
            seen.add((image, place))
            hits += 1
        else:
            false += 1
        points.append((Fraction(hits, objects), Fraction(hits, hits + false)))

    def best_from(recall: Fraction) -> Fraction:
        return max((precision for reached, precision in points if reached >= recall), default=Fraction(0))

    eleven = sum(best_from(Fraction(tenth, 10)) for tenth in range(11)) / Fraction(11)
    # the envelope is a staircase whose steps are one object wide
    area = sum(best_from(Fraction(step, objects)) for step in range(1, objects + 1)) / Fraction(objects)
    return float(area), float(eleven)


box_strategy = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.integers(1, 12)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)
truths_strategy = st.lists(st.tuples(box_strategy, st.integers(0, 1), st.booleans()), max_size=5)
found_strategy = st.lists(st.tuples(box_strategy, st.integers(1, 4), st.integers(0, 1)), max_size=8)


@settings(deadline=None)  # a slow machine must not fail this test
@given(st.lists(st.tuples(truths_strategy, found_strategy), min_size=1, max_size=3))
def test_both_rules_agree_with_the_definition_in_exact_fractions(images: list) -> None:
    samples = [truth([one[0] for one in t], [one[1] for one in t], [one[2] for one in t]) for t, _ in images]
    # boxes near the objects, so that there are hits; few scores, so that there are ties
    predictions = [
        found(
            [one[0] for one in f] + [one[0] for one in t],
            [one[1] / 4 for one in f] + [0.5] * len(t),
            [one[2] for one in f] + [one[1] for one in t],
        )
        for t, f in images
    ]
    result = voc_ap(samples, predictions, LABELS)
    for label, name in enumerate(LABELS):
        wanted = slow_ap(samples, predictions, label)
        measured = result["VOC_AP_by_class"][name], result["VOC_AP_11_by_class"][name]
        assert measured == ((None, None) if wanted is None else pytest.approx(wanted))


def test_ignoring_a_difficult_object_is_not_the_same_as_removing_it() -> None:
    objects = truth([BOX, FAR], difficult=[True, False])
    detections = found([BOX, FAR], [0.9, 0.8])
    removed = replace(objects.objects(), difficult=None)
    assert cats([objects], [detections])[0] == 1.0
    assert cats([removed], [detections])[0] == pytest.approx(1 / 2)
