"""Metrics of a predictor on a data set: `collect` and `measure`."""

import json
from dataclasses import replace

import numpy as np
import pytest

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.evaluation.coco import coco_ap
from faster_rcnn.evaluation.measure import collect, measure
from tests.faster_rcnn.evaluation.hand_made import LABELS, TRUTH, prediction, sample


def test_a_difficult_object_changes_no_metric_whether_found_or_not() -> None:
    objects = replace(sample([[10, 10, 50, 50], [60, 60, 90, 90]], [0, 0]), difficult=np.array([True, False]))
    for found in (prediction([[60, 60, 90, 90]], [0.8], [0]), prediction(objects.boxes.tolist(), [0.9, 0.8], [0, 0])):
        metrics = measure([objects], [found], LABELS)
        assert (metrics["AP"], metrics["VOC_mAP"], metrics["objects"]) == (1.0, 1.0, 1)


def test_all_metrics_are_in_one_dict_that_json_can_hold() -> None:
    # cats by score: hit, false, hit; area 1/2 · 1 + 1/2 · 2/3; eleven points (6 + 5 · 2/3) / 11; dog found
    found = [
        prediction([[10, 10, 50, 50], [60, 60, 90, 90]], [0.9, 0.9], [0, 1]),
        prediction([[0, 0, 40, 40]], [0.5], [0]),
        prediction([[0, 0, 40, 40]], [0.7], [0]),
    ]
    metrics = measure(TRUTH, found, LABELS)
    assert metrics["VOC_AP_by_class"] == {"cat": 0.8333, "dog": 1.0}
    assert metrics["VOC_AP_11_by_class"] == {"cat": 0.8485, "dog": 1.0}
    assert metrics["VOC_mAP"] == pytest.approx((5 / 6 + 1) / 2, abs=1e-4)
    assert metrics["AP"] == coco_ap(TRUTH, found, LABELS)["AP"]
    assert "proposals" not in metrics
    assert json.loads(json.dumps(metrics)) == metrics


@pytest.mark.parametrize(("most", "numbers"), [(40, ["40"]), (150, ["100"]), (300, ["100", "300"])])
def test_recall_is_measured_for_the_numbers_of_proposals_that_exist(most: int, numbers: list[str]) -> None:
    regions = np.tile(np.array([[10.0, 10, 50, 50]], np.float32), (most, 1))
    found = [replace(prediction([], [], []), proposals=regions)] * 3
    metrics = measure(TRUTH, found, LABELS)
    assert list(metrics["proposals"]) == numbers
    # one of three objects, the cat of the first image, is covered exactly; the second has IoU 30² / (2 · 40² - 30²)
    assert metrics["proposals"][numbers[0]]["R@0.5"] == pytest.approx(1 / 3, abs=1e-4)


def oracle(one: Sample) -> Prediction:
    return prediction(one.boxes.tolist(), [0.9] * len(one.labels), one.labels.tolist())


def test_collect_keeps_objects_and_sizes_but_no_pixels() -> None:
    dataset = Shapes("val", length=5)
    truths, predictions = collect(dataset, oracle, 3)
    assert len(truths) == len(predictions) == 3
    for index, truth in enumerate(truths):
        assert truth.image.shape[:2] == dataset.size(index)
        assert truth.image.strides == (0, 0, 0)  # one byte for all pixels
        assert truth.boxes.tolist() == dataset[index].boxes.tolist()
    assert measure(truths, predictions, dataset.labels)["VOC_mAP"] == 1.0
