"""Intersection over union for the metrics, in float64 although boxes are float32.

A and B are numbers of boxes. Boxes are x1, y1, x2, y2; their sides are x2 - x1 and y2 - y1, without "+1".
"""

import numpy as np
from pycocotools import mask


def overlaps(boxes: np.ndarray, others: np.ndarray, inside: bool = False) -> np.ndarray:
    """The overlap of each of `boxes` with each of `others`, computed by pycocotools so that it equals COCO's own.

    boxes: [A, 4];  others: [B, 4].  Returns float64 [A, B]: intersection over union or, if `inside`, intersection over
    the area of the box, which is COCO's rule for crowds.
    """
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    flags = np.full(len(others), inside, np.uint8)
    return np.asarray(mask.iou(corners_to_coco(boxes), corners_to_coco(others), flags))


def corners_to_coco(boxes: np.ndarray) -> np.ndarray:
    """Converts boxes [R, 4] from x1, y1, x2, y2 to float64 x, y, width, height."""
    corners = boxes.astype(np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
