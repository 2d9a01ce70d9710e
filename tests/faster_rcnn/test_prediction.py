"""Prediction for one image: its canvas, its scale, boxes in the original's pixels, and the detector's mode."""

import numpy as np
import pytest
import torch

from faster_rcnn.data.dataset import Sample
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.prediction import inferring, prepare_image
from tests.faster_rcnn.lively import lively


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return lively("compact", resize=ResizeRule(64, 128))


def test_boxes_are_scaled_to_the_canvas_and_back_and_clipped_to_the_original(detector: FasterRCNN) -> None:
    """40 × 50 pixels (height × width) become 64 × 80: the scale is 1.6; the stride of compact is 16."""
    proposals = np.array([[10, 20, 50, 40]], np.float32)
    sample = Sample(np.zeros((40, 50, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, np.int64), proposals=proposals)
    image = prepare_image(detector, sample)
    assert image.batch.images.shape == (1, 64, 80, 3)
    assert image.batch.sizes.tolist() == [[64, 80]]
    assert image.batch.proposals is not None
    assert image.batch.proposals[0].tolist() == [pytest.approx([16, 32, 80, 64])]
    on_canvas = torch.tensor([[[16.0, 32.0, 80.0, 64.0], [-8.0, 0.0, 88.0, 16.0]]])
    np.testing.assert_allclose(image.to_original(on_canvas), [[10, 20, 50, 40], [0, 0, 50, 10]], rtol=1e-6)


def test_the_detectors_mode_is_restored_even_after_an_error(detector: FasterRCNN) -> None:
    detector.train()
    with inferring(detector):
        assert not detector.training
        assert not torch.is_grad_enabled()
    assert detector.training
    with pytest.raises(ZeroDivisionError), inferring(detector):
        _ = 1 / 0
    assert detector.training
    assert torch.is_grad_enabled()
    detector.eval()
