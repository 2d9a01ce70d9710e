"""Predictors: functions that detect objects in one sample and return boxes in pixels of the original image.

Boxes are x1, y1, x2, y2.
"""

from collections.abc import Callable

import numpy as np
import torch

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.prediction import inferring, prepare_image
from faster_rcnn.proposal_sources.rpn import image_regions

Predictor = Callable[[Sample], Prediction]


def torch_predictor(detector: FasterRCNN) -> Predictor:
    """Runs the detector in PyTorch on one image at a time. Predictions include the detector's proposals."""

    def predict(sample: Sample) -> Prediction:
        image = prepare_image(detector, sample)
        with inferring(detector):
            output = detector(image.batch.images, image.batch.sizes)
        detections, proposals = int(output.num_detections[0]), int(output.num_proposals[0])
        return Prediction(
            image.to_original(output.boxes[:, :detections]),
            output.scores[0, :detections].cpu().numpy(),
            output.labels[0, :detections].cpu().numpy(),
            image.to_original(output.proposals[:, :proposals]),
            float(output.left_out[0]),
        )

    return predict


def fast_rcnn_predictor(detector: FasterRCNN) -> Predictor:
    """Runs Fast R-CNN: the detector's head on the proposals of a sample, one image at a time.

    The predictor raises ValueError for a sample whose proposals are None. An empty array of proposals is allowed.
    """

    def predict(sample: Sample) -> Prediction:
        if sample.proposals is None:
            raise ValueError("the images carry no proposals; open the data set with those of a source")
        image = prepare_image(detector, sample)
        assert image.batch.proposals is not None
        proposals = image.batch.proposals[0]
        # The head needs at least one row, so an empty list is padded; a `count` of 0 marks that row as padding.
        padded = proposals if len(proposals) else proposals.new_tensor([[0.0, 0.0, 1.0, 1.0]])
        count = torch.tensor([len(proposals)], device=proposals.device)
        with inferring(detector):
            found = detector.detect_given(image.batch.images, image.batch.sizes, padded[None], count)
        detections = int(found.number[0])
        return Prediction(
            image.to_original(found.boxes[:, :detections]),
            found.scores[0, :detections].cpu().numpy(),
            found.labels[0, :detections].cpu().numpy(),
            sample.proposals,
            float(found.left_out[0]),
        )

    return predict


def rpn_predictor(detector: FasterRCNN) -> Predictor:
    """Runs only the RPN: predictions have proposals but no detections."""

    def predict(sample: Sample) -> Prediction:
        regions = image_regions(detector, sample, detector.config.proposals)
        return Prediction(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), proposals=regions.boxes
        )

    return predict
