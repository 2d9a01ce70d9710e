"""COCO's average precision on cases worked by hand, and what is collected and measured of a predictor."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.data.loader import collate
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.resize import resize_image
from faster_rcnn.evaluation import coco_ap, collect, measure, proposal_recall, torch_predictor
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from tests.faster_rcnn.lively import lively

MODEL = Path(__file__).resolve().parents[3] / "model_store" / "shapes" / "1"
LABELS = ("cat", "dog")


def sample(boxes: list[list[float]], labels: list[int]) -> Sample:
    return Sample(
        np.zeros((100, 100, 3), np.uint8), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)
    )


def prediction(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Prediction:
    return Prediction(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


TRUTH = [sample([[10, 10, 50, 50], [60, 60, 90, 90]], [0, 1]), sample([[0, 0, 40, 40]], [0]), sample([], [])]


def test_the_truth_itself_is_perfect() -> None:
    found = [prediction(one.boxes.tolist(), [0.9] * len(one.boxes), one.labels.tolist()) for one in TRUTH]
    metrics = coco_ap(TRUTH, found, LABELS)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == 1.0
    assert metrics["AP_by_class"] == {"cat": 1.0, "dog": 1.0}
    assert (metrics["pictures"], metrics["objects"]) == (3, 3)


def test_a_shifted_box_counts_at_the_thresholds_it_passes() -> None:
    # 40 × 40 moved by 5: intersection 35 · 40 = 1400, union 1800, IoU 0.778: passes 0.50 … 0.75, six of ten thresholds
    found = [
        prediction([[15, 10, 55, 50], [60, 60, 90, 90]], [0.9, 0.9], [0, 1]),
        prediction([[5, 0, 45, 40]], [0.9], [0]),
    ]
    metrics = coco_ap(TRUTH, [*found, prediction([], [], [])], LABELS)
    assert metrics["AP_by_class"] == {"cat": pytest.approx(0.6), "dog": 1.0}
    assert metrics["AP50"] == metrics["AP75"] == 1.0


def test_a_false_alarm_above_half_of_the_objects_costs_precision() -> None:
    found = [
        prediction([[10, 10, 50, 50]], [0.9], [0]),
        prediction([[0, 0, 40, 40]], [0.5], [0]),
        prediction([[0, 0, 40, 40]], [0.7], [0]),  # an empty image
    ]
    # cats by score: hit, miss, hit; recall 0.5 at precision 1, recall 1 at 2/3
    # 101-point interpolation: 51 points at 1 and 50 at 2/3
    assert coco_ap(TRUTH, found, LABELS)["AP_by_class"]["cat"] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-4)


def test_nothing_found_is_zero_and_no_object_is_an_error() -> None:
    nothing = prediction([], [], [])
    assert coco_ap(TRUTH, [nothing] * 3, LABELS)["AP"] == 0.0
    with pytest.raises(ValueError, match="hold no object"):
        coco_ap([TRUTH[2]], [nothing], LABELS)


def test_a_class_that_does_not_occur_is_none() -> None:
    only_cats = TRUTH[1]
    found = prediction(only_cats.boxes.tolist(), [0.9], [0])
    assert coco_ap([only_cats], [found], LABELS)["AP_by_class"] == {"cat": 1.0, "dog": None}


def test_a_difficult_object_costs_nothing_by_any_measure() -> None:
    objects = replace(sample([[10, 10, 50, 50], [60, 60, 90, 90]], [0, 0]), difficult=np.array([True, False]))
    for found in (prediction([[60, 60, 90, 90]], [0.8], [0]), prediction(objects.boxes.tolist(), [0.9, 0.8], [0, 0])):
        metrics = measure([objects], [found], LABELS)
        assert (metrics["AP"], metrics["VOC_mAP"], metrics["objects"]) == (1.0, 1.0, 1)


def test_all_measures_stand_in_one_record_that_json_takes() -> None:
    # cats: hit, false, hit (as above); area 1/2 · 1 + 1/2 · 2/3; eleven points (6 + 5 · 2/3) / 11; dog found
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
def test_recall_is_told_for_the_numbers_of_proposals_that_there_are(most: int, numbers: list[str]) -> None:
    regions = np.tile(np.array([[10.0, 10, 50, 50]], np.float32), (most, 1))
    found = [replace(prediction([], [], []), proposals=regions)] * 3
    metrics = measure(TRUTH, found, LABELS)
    assert list(metrics["proposals"]) == numbers
    # of three objects the cat of the first image is met exactly; the second image's has IoU 30² / (2 · 40² - 30²)
    assert metrics["proposals"][numbers[0]]["R@0.5"] == pytest.approx(1 / 3, abs=1e-4)


def oracle(one: Sample) -> Prediction:
    return prediction(one.boxes.tolist(), [0.9] * len(one.labels), one.labels.tolist())


def test_collecting_keeps_objects_and_sizes_but_no_pixels() -> None:
    dataset = Shapes("val", length=5)
    truths, predictions = collect(dataset, oracle, 3)
    assert len(truths) == len(predictions) == 3
    for index, truth in enumerate(truths):
        assert truth.image.shape[:2] == dataset.size(index)
        assert truth.image.strides == (0, 0, 0)  # one byte for all pixels
        assert truth.boxes.tolist() == dataset[index].boxes.tolist()
    assert measure(truths, predictions, dataset.labels)["VOC_mAP"] == 1.0


def test_a_detector_gives_its_proposals_in_pixels_of_the_original_image() -> None:
    detector = lively("compact")
    image = np.random.default_rng(3).integers(0, 255, (60, 90, 3), np.uint8)
    small = torch_predictor(detector)(Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    batch, scale_x, scale_y = resize_image(image, detector.config.resize)
    canvas = collate([Sample(batch, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))], detector.backbone.stride)
    with torch.no_grad():
        answer = detector(canvas.images, canvas.sizes)
    number = int(answer.num_proposals[0])
    wanted = answer.proposals[0, :number].numpy() / [scale_x, scale_y, scale_x, scale_y]
    assert small.proposals is not None
    assert number > 0
    assert small.proposals.dtype == np.float32
    assert small.proposals == pytest.approx(wanted, abs=1e-3)
    assert small.proposals.min() >= 0
    assert (small.proposals <= [90, 60, 90, 60]).all()


def test_the_published_model_gives_its_proposals_too() -> None:
    picture = Shapes("test", seed=5)[0]
    found = onnx_predictor(MODEL)(picture)
    assert found.proposals is not None
    result = proposal_recall([picture], [found.proposals], (100,))
    assert result["by_number"]["100"]["R@0.5"] == 1.0
