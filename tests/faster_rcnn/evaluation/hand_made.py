"""A small data set with hand-made boxes, and predictions for it."""

import numpy as np

from faster_rcnn.data.dataset import Prediction, Sample

LABELS = ("cat", "dog")


def sample(boxes: list[list[float]], labels: list[int]) -> Sample:
    """A sample of 100 × 100 black pixels with the given objects."""
    return Sample(
        np.zeros((100, 100, 3), np.uint8), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)
    )


def prediction(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Prediction:
    """A prediction with the given detections and without proposals."""
    return Prediction(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


TRUTH = [sample([[10, 10, 50, 50], [60, 60, 90, 90]], [0, 1]), sample([[0, 0, 40, 40]], [0]), sample([], [])]
