"""Predictors: functions that detect objects in one sample, with its boxes in the pixels of the original image.

P  proposals of an image.  Boxes are x1, y1, x2, y2.
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
    """The PyTorch detector, one image at a time on the smallest canvas. Predictions include its proposals."""

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
        )

    return predict


def fast_rcnn_predictor(detector: FasterRCNN) -> Predictor:
    """Fast R-CNN: the detector's head on the proposals that a sample carries, one image at a time.

    Predicting raises ValueError for a sample without proposals (None; an empty array is allowed).
    """

    def predict(sample: Sample) -> Prediction:
        if sample.proposals is None:
            raise ValueError("the images carry no proposals; open the data set with those of a source")
        image = prepare_image(detector, sample)
        assert image.batch.proposals is not None
        proposals = image.batch.proposals[0]
        # The head needs at least one row, so an empty list is padded; `count` says that the row is padding.
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
        )

    return predict


def rpn_predictor(detector: FasterRCNN) -> Predictor:
    """The RPN alone: predictions with proposals and without detections."""

    def predict(sample: Sample) -> Prediction:
        regions = image_regions(detector, sample, detector.config.proposals)
        return Prediction(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), proposals=regions.boxes
        )

    return predict
