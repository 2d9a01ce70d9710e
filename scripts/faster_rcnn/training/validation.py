"""Validation during training: metrics and losses on images that the detector does not learn from."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from faster_rcnn.data.augmentation import prepare
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.loader import collate
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.evaluation.drawing import TRUTH, contact_sheet, draw_boxes, draw_prediction
from faster_rcnn.evaluation.measure import collect
from faster_rcnn.evaluation.threshold import ASSUMED, ScoredDetections
from faster_rcnn.training.objectives import Objective
from faster_rcnn.training.options import TrainingOptions

IMAGES_ON_SHEET = 12


def validate(
    detector: FasterRCNN, objective: Objective, dataset: Dataset, options: TrainingOptions
) -> tuple[dict[str, Any], Image.Image]:
    """The objective's metrics and losses (`loss_…`) on the first images of `dataset`, and a sheet of predictions.

    If these images have no objects, there is nothing to measure: the metric that chooses the best checkpoint is None,
    and the training run continues.
    """
    training = detector.training
    detector.eval()
    truths, predictions = collect(dataset, objective.predictor(detector), options.validation_pictures)
    try:
        metrics = objective.measure(truths, predictions, dataset.labels)
    except ValueError:
        metrics = {objective.chosen_by: None}
    metrics |= _losses(detector, objective, dataset, options)
    drawings = []
    # 0.5 would leave the sheets of an early validation empty
    shown = ScoredDetections.match(truths, predictions, len(dataset.labels)).best() or ASSUMED
    for index, prediction in enumerate(predictions[:IMAGES_ON_SHEET]):
        sample = dataset[index]
        drawing = draw_boxes(sample.image, sample.boxes, [""] * len(sample.boxes), [TRUTH] * len(sample.boxes))
        drawings.append(draw_prediction(np.asarray(drawing), prediction, dataset.labels, shown))
    detector.train(training)
    return metrics, contact_sheet(drawings)


@torch.no_grad()
def _losses(detector: FasterRCNN, objective: Objective, dataset: Dataset, options: TrainingOptions) -> dict[str, float]:
    """The mean of each loss over the images. The seed of an image is its index, the same in every validation."""
    sums: dict[str, float] = {}
    number = min(options.validation_pictures, len(dataset))
    for index in range(number):
        sample = dataset[index].objects(options.with_difficult)
        batch = collate([prepare(sample, detector.config.resize, (), index)], detector.backbone.stride, [index])
        losses = objective.losses(detector, batch.to(detector.mean.device), options.mixed_precision)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + float(loss)
    means = {f"loss_{name}": round(value / number, 5) for name, value in sums.items()}
    return {"loss": round(sum(means.values()), 5), **means}
