"""Validation during training: metrics and losses on images that the detector does not learn from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from faster_rcnn.data.augmentation import prepare
from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.data.loader import collate
from faster_rcnn.data.subset import EveryNth, Subset
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.evaluation.drawing import TRUTH, contact_sheet, draw_boxes, draw_prediction
from faster_rcnn.evaluation.measure import collect
from faster_rcnn.evaluation.threshold import ASSUMED, ScoredDetections
from faster_rcnn.training.objectives import Objective
from faster_rcnn.training.options import TrainingOptions
from faster_rcnn.training.processes import gathered_by_first, processes, rank
from faster_rcnn.training.waiting import alone

IMAGES_ON_SHEET = 12
NOTHING = np.zeros(0, np.uint8)


def validate(
    detector: FasterRCNN, objective: Objective, dataset: Dataset, options: TrainingOptions
) -> tuple[dict[str, Any], Image.Image] | None:
    """The objective's metrics and losses (`loss_…`) on the first images of `dataset`, and a sheet of predictions.

    Each process takes its share of the images. The first one gets the result, which does not depend on the number of
    processes; the others get None.
    If these images have no objects, there is nothing to measure: the metric that chooses the best checkpoint is None,
    and the training run continues.
    """
    training = detector.training
    detector.eval()
    images = Subset(dataset, options.validation_pictures)
    share = EveryNth(images, rank(), processes())
    truths, predictions = collect(share, objective.predictor(detector), with_bar=rank() == 0)
    losses = _losses(detector, objective, images, options)
    detector.train(training)
    # Sent as a whole, a blank image would take the memory of a real one.
    blanks = [(sample.image.shape, replace(sample, image=NOTHING)) for sample in truths]
    shares = gathered_by_first((blanks, predictions, losses))

    def judge() -> tuple[dict[str, Any], Image.Image]:
        assert shares is not None
        blanks, predictions, losses = (_in_turn(parts) for parts in zip(*shares, strict=True))
        truths = [replace(sample, image=np.broadcast_to(np.uint8(0), shape)) for shape, sample in blanks]
        return _judge(objective, dataset, truths, predictions, losses)

    return alone(judge)


def _judge(
    objective: Objective,
    dataset: Dataset,
    truths: Sequence[Sample],
    predictions: Sequence[Prediction],
    losses: Sequence[dict[str, float]],
) -> tuple[dict[str, Any], Image.Image]:
    try:
        metrics = objective.measure(truths, predictions, dataset.labels)
    except ValueError:
        metrics = {objective.chosen_by: None}
    metrics |= _means(losses)
    drawings = []
    # 0.5 would leave the sheets of an early validation empty
    shown = ScoredDetections.match(truths, predictions, len(dataset.labels)).best() or ASSUMED
    for index, prediction in enumerate(predictions[:IMAGES_ON_SHEET]):
        sample = dataset[index]
        drawing = draw_boxes(sample.image, sample.boxes, [""] * len(sample.boxes), [TRUTH] * len(sample.boxes))
        drawings.append(draw_prediction(np.asarray(drawing), prediction, dataset.labels, shown))
    return metrics, contact_sheet(drawings)


@torch.no_grad()
def _losses(
    detector: FasterRCNN, objective: Objective, images: Dataset, options: TrainingOptions
) -> list[dict[str, float]]:
    """The losses of each image of this process. The seed of an image is its index, the same in every validation."""
    found = []
    for index in range(rank(), len(images), processes()):
        sample = images[index].objects(options.with_difficult)
        batch = collate([prepare(sample, detector.config.resize, (), index)], detector.backbone.stride, [index])
        losses = objective.losses(detector, batch.to(detector.mean.device), options.mixed_precision)
        found.append({name: float(loss) for name, loss in losses.items()})
    return found


def _means(losses: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each loss over the images, and the sum of these means."""
    means = {f"loss_{name}": round(sum(one[name] for one in losses) / len(losses), 5) for name in losses[0]}
    return {"loss": round(sum(means.values()), 5), **means}


def _in_turn(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """What `EveryNth` has dealt out, in its original order."""
    return [shares[index % len(shares)][index // len(shares)] for index in range(sum(map(len, shares)))]
