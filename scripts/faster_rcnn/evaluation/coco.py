"""COCO's average precision, computed by pycocotools.  Boxes are x1, y1, x2, y2 in pixels of the original image."""

import contextlib
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.overlaps import corners_to_coco

# Only the best detections of each class in an image count for AP and AR100: COCO's rule (maxDets in pycocotools).
MAX_DETECTIONS = 100
SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")


def coco_ap(samples: Iterable[Sample], predictions: Iterable[Prediction], labels: tuple[str, ...]) -> dict[str, Any]:
    """COCO's metrics: AP (mean over IoU 0.50:0.95), AP50, AP75, APs, APm, APl, AR1, AR10, AR100, and AP_by_class.

    Also returns the number of images (`pictures`) and objects; AP_max_detections, the number of detections of a class
    that count in one image; and pictures_beyond, the number of images with more objects of a class than that. The AP of
    a class without objects is None. COCO does not mark objects as difficult, so difficult objects are treated as
    crowds, which do not count either. Raises ValueError if the samples have no object.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    beyond = 0
    for number, (sample, prediction) in enumerate(zip(samples, predictions, strict=True), start=1):
        height, width = sample.image.shape[:2]
        images.append({"id": number, "height": height, "width": width})
        annotations += _annotations(sample, number, first=len(annotations) + 1)
        results += _results(prediction, number)
        beyond += exceeds_limit(sample)
    objects = sum(not annotation["iscrowd"] for annotation in annotations)
    if objects == 0:
        raise ValueError("the images contain no object, so precision cannot be measured; use more images")
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(labels)]
    evaluated = _evaluate({"info": {}, "images": images, "annotations": annotations, "categories": categories}, results)
    metrics: dict[str, Any] = {name: _known(value) for name, value in zip(SUMMARY, evaluated.stats, strict=False)}
    # The axes are IoU thresholds, recalls, classes, areas (0: all) and the most detections per image (-1: 100).
    precision = evaluated.eval["precision"][:, :, :, 0, -1]
    metrics["AP_by_class"] = {
        name: _known(np.mean(of_class) if (of_class := precision[:, :, place]).max() > -1 else -1)
        for place, name in enumerate(labels)
    }
    counted = {"pictures": len(images), "objects": objects}
    return metrics | counted | {"AP_max_detections": MAX_DETECTIONS, "pictures_beyond": beyond}


def exceeds_limit(sample: Sample) -> bool:
    """Whether an image has more than MAX_DETECTIONS objects of one class, so that its AP stays below 1."""
    return bool((np.bincount(sample.labels[sample.counted()]) > MAX_DETECTIONS).any())


def _annotations(sample: Sample, image: int, first: int) -> list[dict[str, Any]]:
    """A sample's objects as COCO annotations, with ids from `first` upwards."""
    boxes = corners_to_coco(sample.boxes)
    areas = boxes[:, 2:].prod(axis=1) if sample.areas is None else sample.areas
    uncounted = ~sample.counted()
    return [
        {"id": first + row, "image_id": image, "category_id": label + 1, "bbox": box, "area": area, "iscrowd": crowd}
        for row, (label, box, area, crowd) in enumerate(
            zip(sample.labels.tolist(), boxes.tolist(), areas.tolist(), uncounted.astype(int).tolist(), strict=True)
        )
    ]


def _results(prediction: Prediction, image: int) -> list[dict[str, Any]]:
    boxes = corners_to_coco(prediction.boxes).tolist()
    return [
        {"image_id": image, "category_id": label + 1, "bbox": box, "score": score}
        for box, score, label in zip(boxes, prediction.scores.tolist(), prediction.labels.tolist(), strict=True)
    ]


def _evaluate(document: dict[str, Any], results: list[dict[str, Any]]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints each of its steps
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        evaluated = COCOeval(truth, truth.loadRes(results) if results else _no_results(truth), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated


def _no_results(truth: COCO) -> COCO:
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def _known(value: float) -> float | None:
    """The rounded value, or None for -1, which pycocotools returns if there is nothing to measure."""
    return None if value < 0 else round(float(value), 4)
