"""Validation during training: losses and metrics on images that nothing is learned from, and a look at them."""

from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from faster_rcnn.data.augmentation import prepare
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.loader import collate
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.evaluation import collect
from faster_rcnn.evaluation.drawing import TRUTH, contact_sheet, draw_boxes, draw_prediction
from faster_rcnn.training.options import TrainingOptions
from faster_rcnn.training.tasks import Task

IMAGES = 12  # on a sheet of predictions
SHOWN_SCORE = 0.5


def validate(
    detector: FasterRCNN, task: Task, dataset: Dataset, options: TrainingOptions
) -> tuple[dict[str, Any], Image.Image]:
    """The task's metrics and losses (`loss_…`) on the first images of `dataset`, and a sheet of predictions.

    A metric is None where the images hold no object: nothing to measure, but no reason to end a run.
    """
    training = detector.training
    detector.eval()
    predict = task.predictor(detector)
    truths, predictions = collect(dataset, predict, options.validation_pictures)
    try:
        metrics = task.measure(truths, predictions, dataset.labels)
    except ValueError:
        metrics = {task.chosen_by: None}
    metrics |= _losses(detector, task, dataset, options)
    images = []
    for index, prediction in enumerate(predictions[:IMAGES]):
        sample = dataset[index]
        picture = draw_boxes(sample.image, sample.boxes, [""] * len(sample.boxes), [TRUTH] * len(sample.boxes))
        images.append(draw_prediction(np.asarray(picture), prediction, dataset.labels, SHOWN_SCORE))
    detector.train(training)
    return metrics, contact_sheet(images)


@torch.no_grad()
def _losses(detector: FasterRCNN, task: Task, dataset: Dataset, options: TrainingOptions) -> dict[str, float]:
    """The mean of each loss over the images, drawn at random alike in every validation."""
    sums: dict[str, float] = {}
    number = min(options.validation_pictures, len(dataset))
    for index in islice(range(len(dataset)), number):
        sample = dataset[index].objects(options.with_difficult)
        batch = collate([prepare(sample, detector.config.resize, (), index)], detector.backbone.stride, [index])
        for name, loss in task.losses(detector, batch.to(detector.mean.device), options.mixed_precision).items():
            sums[name] = sums.get(name, 0.0) + float(loss)
    losses = {f"loss_{name}": round(value / number, 5) for name, value in sums.items()}
    return {"loss": round(sum(losses.values()), 5), **losses}
