"""How good detections are: COCO's average precision.

G  ground-truth objects;  D  detections of one picture.  Boxes are x1, y1, x2, y2 in the pixels of the original picture.
"""

import contextlib
import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from faster_rcnn.boxes import clip_to_sizes
from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.data.loader import collate
from faster_rcnn.detector import FasterRCNN
from faster_rcnn.resize import resize_image

Predictor = Callable[[Sample], Prediction]


def torch_predictor(detector: FasterRCNN) -> Predictor:
    """The PyTorch detector on one picture by itself, on the tightest canvas."""
    device = detector.mean.device

    @torch.no_grad()
    def predict(sample: Sample) -> Prediction:
        training = detector.training
        detector.eval()
        image, scale_x, scale_y = resize_image(sample.image, detector.config.resize)
        batch = collate([Sample(image, sample.boxes, sample.labels)], detector.backbone.stride).to(device)
        answer = detector(batch.images, batch.sizes)
        detector.train(training)
        real = int(answer.num_detections[0])
        boxes = answer.boxes[:, :real] / answer.boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        boxes = clip_to_sizes(boxes, torch.tensor([sample.image.shape[:2]], device=device))
        return Prediction(
            boxes[0].cpu().numpy(), answer.scores[0, :real].cpu().numpy(), answer.labels[0, :real].cpu().numpy()
        )

    return predict


def evaluate(dataset: Dataset, predict: Predictor, limit: int | None = None) -> dict[str, Any]:
    """COCO metrics of a predictor on the first `limit` pictures of a data set."""
    indices = range(len(dataset) if limit is None else min(limit, len(dataset)))
    truths, predictions = [], []
    for index in tqdm(indices, desc="evaluating", unit="picture", leave=False):
        sample = dataset[index]
        predictions.append(predict(sample))
        # the pixels are no longer needed, and thousands of pictures would fill the memory
        truths.append(replace(sample, image=np.broadcast_to(np.uint8(0), sample.image.shape)))
    return coco_ap(truths, predictions, dataset.labels)


def coco_ap(samples: Iterable[Sample], predictions: Iterable[Prediction], labels: tuple[str, ...]) -> dict[str, Any]:
    """COCO's average precision, computed by pycocotools.

    Returns AP (mean over IoU 0.50:0.95), AP50, AP75, APs, APm, APl, AR100, and AP by class; a class without an object
    is None. Raises ValueError if there is no object at all, for then there is nothing to measure.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, (sample, prediction) in enumerate(zip(samples, predictions, strict=True), start=1):
        height, width = sample.image.shape[:2]
        images.append({"id": number, "height": height, "width": width})
        crowd = sample.crowd.tolist() if sample.crowd is not None else [False] * len(sample.labels)
        areas = sample.areas.tolist() if sample.areas is not None else _areas(sample.boxes)
        for box, label, area, is_crowd in zip(
            _coco_boxes(sample.boxes), sample.labels.tolist(), areas, crowd, strict=True
        ):
            identity = len(annotations) + 1
            annotations.append(
                {
                    "id": identity,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
            )
        for box, score, label in zip(
            _coco_boxes(prediction.boxes), prediction.scores.tolist(), prediction.labels.tolist(), strict=True
        ):
            results.append({"image_id": number, "category_id": label + 1, "bbox": box, "score": score})
    if not any(annotation["iscrowd"] == 0 for annotation in annotations):
        raise ValueError("the pictures hold no object, so that no precision can be told; take more pictures")
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(labels)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints each of its steps
        truth = COCO()
        truth.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        truth.createIndex()
        found = truth.loadRes(results) if results else _no_results(truth)
        run = COCOeval(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
    metrics: dict[str, Any] = {name: _known(value) for name, value in zip(names, run.stats, strict=False)}
    precision = run.eval["precision"][:, :, :, 0, -1]  # IoU thresholds, recalls, classes, all areas, 100 detections
    metrics["AP_by_class"] = {
        name: _known(np.mean(of_class) if (of_class := precision[:, :, place]).max() > -1 else -1)
        for place, name in enumerate(labels)
    }
    return metrics | {"pictures": len(images), "objects": sum(annotation["iscrowd"] == 0 for annotation in annotations)}


def _areas(boxes: np.ndarray) -> list[float]:
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return sides.prod(axis=1).tolist()


def _no_results(truth: COCO) -> COCO:
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def _coco_boxes(boxes: np.ndarray) -> list[list[float]]:
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()


def _known(value: float) -> float | None:
    """pycocotools writes -1 where there is nothing to measure."""
    return None if value < 0 else round(float(value), 4)
