"""Predictors: the detector, its head alone and its RPN alone return boxes in pixels of the original image."""

from pathlib import Path

import numpy as np
import pytest
import torch

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.loader import collate
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.resize import resize_image
from faster_rcnn.evaluation.predictors import fast_rcnn_predictor, rpn_predictor, torch_predictor
from faster_rcnn.evaluation.recall import proposal_recall
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from tests.faster_rcnn.lively import lively

MODEL = Path(__file__).resolve().parents[3] / "model_store" / "shapes" / "1"


def photo(height: int = 301, width: int = 517) -> Sample:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def test_a_detectors_own_proposals_lead_to_its_own_detections() -> None:
    detector, sample = lively("compact"), photo()
    whole = torch_predictor(detector)(sample)
    assert len(whole.boxes) > 5
    assert whole.proposals is not None
    again = fast_rcnn_predictor(detector)(Sample(sample.image, sample.boxes, sample.labels, proposals=whole.proposals))
    assert again.labels.tolist() == whole.labels.tolist()
    np.testing.assert_allclose(again.scores, whole.scores, atol=1e-4)
    # the proposals were converted to original pixels and back
    np.testing.assert_allclose(again.boxes, whole.boxes, atol=0.1)


def test_detections_lie_near_the_proposals_in_original_pixels() -> None:
    regions = np.array([[400, 200, 500, 290]], np.float32)
    found = fast_rcnn_predictor(lively("compact"))(Sample(**{**vars(photo()), "proposals": regions}))
    assert len(found.boxes) > 0
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    assert (np.abs(centres - [450, 245]) < [150, 140]).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [517, 301, 517, 301]).all()


def test_an_empty_list_of_proposals_is_allowed_but_missing_proposals_are_an_error() -> None:
    detector = lively("compact")
    nothing = fast_rcnn_predictor(detector)(Sample(**{**vars(photo()), "proposals": np.zeros((0, 4), np.float32)}))
    assert nothing.boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="carry no proposals"):
        fast_rcnn_predictor(detector)(photo())


def test_proposals_are_in_pixels_of_the_original_image() -> None:
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


def test_a_published_model_returns_its_proposals_too() -> None:
    sample = Shapes("test", seed=5)[0]
    found = onnx_predictor(MODEL)(sample)
    assert found.proposals is not None
    result = proposal_recall([sample], [found.proposals], (100,))
    assert result["by_number"]["100"]["R@0.5"] == 1.0


def test_the_rpn_alone_predicts_proposals_and_no_detection() -> None:
    detector, sample = lively("compact"), photo()
    alone, whole = rpn_predictor(detector)(sample), torch_predictor(detector)(sample)
    assert (len(alone.boxes), len(alone.scores), len(alone.labels)) == (0, 0, 0)
    assert alone.proposals is not None
    assert whole.proposals is not None
    np.testing.assert_allclose(alone.proposals, whole.proposals, atol=1e-3)
