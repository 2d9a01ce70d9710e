"""Untrained detectors that have something to say."""

from dataclasses import replace
from typing import Any

import torch

from faster_rcnn.config import preset
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector import FasterRCNN


def lively(backbone: str, **changes: Any) -> FasterRCNN:
    """An untrained detector whose scores and boxes are spread out, so that a difference would show."""
    torch.manual_seed(1)
    detector = FasterRCNN(replace(preset(backbone, Shapes.labels), **changes)).eval()
    with torch.no_grad():
        for layer, factor in (
            (detector.rpn.cls_score, 100.0),
            (detector.rpn.bbox_pred, 5.0),
            (detector.head.cls_score, 60.0),
            (detector.head.bbox_pred, 300.0),
        ):
            layer.weight *= factor
    return detector
