"""COCO's average precision on cases worked out by hand."""

import pytest

from faster_rcnn.evaluation.coco import coco_ap
from tests.faster_rcnn.evaluation.hand_made import LABELS, TRUTH, prediction


def test_ap_is_one_if_the_detections_equal_the_annotations() -> None:
    found = [prediction(one.boxes.tolist(), [0.9] * len(one.boxes), one.labels.tolist()) for one in TRUTH]
    metrics = coco_ap(TRUTH, found, LABELS)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == 1.0
    assert metrics["AP_by_class"] == {"cat": 1.0, "dog": 1.0}
    assert (metrics["pictures"], metrics["objects"]) == (3, 3)


def test_a_shifted_box_counts_at_the_iou_thresholds_that_it_reaches() -> None:
    # A 40 × 40 box moved by 5: intersection 35 · 40 = 1400, union 1800, IoU 0.778. It reaches six of ten thresholds.
    found = [
        prediction([[15, 10, 55, 50], [60, 60, 90, 90]], [0.9, 0.9], [0, 1]),
        prediction([[5, 0, 45, 40]], [0.9], [0]),
    ]
    metrics = coco_ap(TRUTH, [*found, prediction([], [], [])], LABELS)
    assert metrics["AP_by_class"] == {"cat": pytest.approx(0.6), "dog": 1.0}
    assert metrics["AP50"] == metrics["AP75"] == 1.0


def test_a_false_detection_between_two_hits_lowers_precision() -> None:
    found = [
        prediction([[10, 10, 50, 50]], [0.9], [0]),
        prediction([[0, 0, 40, 40]], [0.5], [0]),
        prediction([[0, 0, 40, 40]], [0.7], [0]),  # an empty image
    ]
    # The cats in the order of scores are hit, miss, hit: recall 0.5 has precision 1, and recall 1 has precision 2/3.
    # The 101-point interpolation has 51 points at precision 1 and 50 at 2/3.
    assert coco_ap(TRUTH, found, LABELS)["AP_by_class"]["cat"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-4)


def test_ap_is_zero_without_detections_and_an_error_without_objects() -> None:
    nothing = prediction([], [], [])
    assert coco_ap(TRUTH, [nothing] * 3, LABELS)["AP"] == 0.0
    with pytest.raises(ValueError, match="contain no object"):
        coco_ap([TRUTH[2]], [nothing], LABELS)


def test_the_ap_of_a_class_without_objects_is_none() -> None:
    only_cats = TRUTH[1]
    found = prediction(only_cats.boxes.tolist(), [0.9], [0])
    assert coco_ap([only_cats], [found], LABELS)["AP_by_class"] == {"cat": 1.0, "dog": None}
