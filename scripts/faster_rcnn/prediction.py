"""Prepares one image for a detector, on the smallest canvas that fits, and converts boxes back to original pixels.

R is the number of boxes. Boxes are x1, y1, x2, y2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.loader import Batch, collate
from faster_rcnn.detector.boxes import clip_to_sizes
from faster_rcnn.detector.config import canvases
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule, resize_image
from service.images.decode import decode
from service.images.fit import Geometry


@dataclass(frozen=True)
class PreparedImage:
    """One image, ready for a detector.

    batch: a batch that holds only this image;  scale: [4], the factors from original to canvas pixels for x, y, x, y;
    size: int64 [1, 2], height and width of the original image.
    """

    batch: Batch
    scale: Tensor
    size: Tensor

    def to_original(self, boxes: Tensor) -> np.ndarray:
        """Converts boxes [1, R, 4] on the canvas to float32 [R, 4] in pixels of the original image, clipped to it."""
        original: np.ndarray = clip_to_sizes(boxes / self.scale, self.size)[0].cpu().numpy()
        return original


def prepare_image(detector: FasterRCNN, sample: Sample) -> PreparedImage:
    """Resizes a sample's image, and its proposals if it has any, and moves them to the detector's device.

    If the sample has a file, the image is decoded as the service decodes it.
    """
    height, width = sample.image.shape[:2]
    if sample.file is None:
        image, _, _ = resize_image(sample.image, detector.config.resize)
    else:
        image = decode(sample.file, geometry_of(detector)).pixels
    scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2, np.float32)
    proposals = None if sample.proposals is None else sample.proposals * scale
    resized = Sample(image, sample.boxes, sample.labels, proposals=proposals)
    device = detector.mean.device
    return PreparedImage(
        collate([resized], detector.backbone.stride).to(device),
        torch.from_numpy(scale).to(device),
        torch.tensor([sample.image.shape[:2]], device=device),
    )


class Resizing(Protocol):
    """What decides how an image is prepared for a detector."""

    stride: int
    resize: ResizeRule
    antialias: bool

    @property
    def white(self) -> int: ...


def geometry_of(detector: Resizing, white: int | None = None) -> Geometry:
    """How the service prepares images for the detector once it is published.  white: instead of the detector's own."""
    rule = detector.resize
    sizes = tuple(canvases(rule, detector.stride))
    return Geometry(sizes, rule.min_size, rule.max_size, detector.antialias, detector.white if white is None else white)


@contextmanager
def inferring(detector: FasterRCNN) -> Iterator[None]:
    """Puts the detector into evaluation mode without gradients, and restores its previous mode afterwards."""
    training = detector.training
    detector.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        detector.train(training)
