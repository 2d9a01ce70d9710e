"""COCO's average precision on cases worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from faster_rcnn.data.dataset import Sample
from faster_rcnn.evaluation.coco import coco_ap, exceeds_limit
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


def test_the_number_of_detections_that_count_is_stated_and_images_beyond_it_are_counted() -> None:
    # 101 cats in a row, all found with the right boxes: the last one has no place among the 100 detections that count.
    row = [[2.0 * place, 0.0, 2.0 * place + 1, 1.0] for place in range(101)]
    crowded = Sample(np.zeros((4, 210, 3), np.uint8), np.array(row, np.float32), np.zeros(101, np.int64))
    metrics = coco_ap([crowded, TRUTH[1]], [prediction(row, [0.9] * 101, [0] * 101), prediction([], [], [])], LABELS)
    assert (metrics["AP_max_detections"], metrics["pictures_beyond"]) == (100, 1)
    # 100 of 102 cats: recall 0.9804, so 99 of the 101 points (0 to 0.98) have precision 1
    assert metrics["AP_by_class"]["cat"] == pytest.approx(99 / 101, abs=1e-4)
    assert not exceeds_limit(replace(crowded, labels=np.arange(101) % 2))  # 51 and 50 of each class
