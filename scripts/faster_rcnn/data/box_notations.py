"""Recognises boxes in another notation than their format defines, which would otherwise be trained on in wrong places.

COCO's boxes are x, y, width, height in pixels; those of Pascal VOC are two corners. Boxes are compared with the sizes
of their images, in which nearly all of them must make sense.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from faster_rcnn.data.box_checks import TOLERANCE

MOST = 0.95  # of the boxes that must fit in the other notation
MANY = 0.1  # of the boxes that must not fit in the format's own notation; at least two


@dataclass(frozen=True)
class Written:
    """Boxes as they are written, and their images' sizes.  boxes: float64 [G, 4];  sizes: [G, 2], width and height."""

    boxes: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]]) -> "Written":
        return cls(np.array(boxes, np.float64).reshape(-1, 4), np.array(sizes, np.float64).reshape(-1, 2))

    def fits_as_corners(self) -> np.ndarray:
        """Bool [G], True where x1, y1, x2, y2 is a box inside the image."""
        inside = (self.boxes[:, 2:] <= self.sizes + TOLERANCE).all(axis=1) & (self.boxes >= -TOLERANCE).all(axis=1)
        return np.asarray(inside & (self.boxes[:, 2:] > self.boxes[:, :2]).all(axis=1))

    def fits_as_size(self) -> np.ndarray:
        """Bool [G], True where x, y, width, height is a box inside the image."""
        with np.errstate(over="ignore"):  # the sum of two absurd numbers is infinite, and outside like them
            far = self.boxes[:, :2] + self.boxes[:, 2:]
        inside = (far <= self.sizes + TOLERANCE).all(axis=1) & (self.boxes[:, :2] >= -TOLERANCE).all(axis=1)
        return np.asarray(inside & (self.boxes[:, 2:] > 0).all(axis=1))


def refuse_corners(file: Path, written: Written) -> None:
    """Raises ValueError if COCO's boxes are corners, or fractions of the image."""
    total = len(written.boxes)
    wrong = int((~written.fits_as_size()).sum())
    right = int(written.fits_as_corners().sum())
    if _is_other(wrong, right, total):
        raise ValueError(
            f"{file}: {wrong} of {total} boxes leave their images as [x, y, width, height], which COCO defines, but "
            f"{right} of {total} fit as corners [x1, y1, x2, y2]; write each bbox as [x1, y1, x2 - x1, y2 - y1]"
        )
    if _are_fractions(written.boxes):
        raise ValueError(
            f"{file}: all {total} boxes lie between 0 and 1, so they are fractions of their images; COCO counts in "
            "pixels; multiply x and width by the image's width, y and height by its height"
        )


def refuse_sizes(where: str, written: Written) -> None:
    """Raises ValueError if VOC's corners are an x, y, width, height, or fractions of the image."""
    total = len(written.boxes)
    wrong = int((~written.fits_as_corners()).sum())
    right = int(written.fits_as_size().sum())
    if _is_other(wrong, right, total):
        raise ValueError(
            f"{where}: {wrong} of {total} boxes do not fit their images as corners, which VOC defines, but {right} of "
            f"{total} fit if xmax and ymax are a width and a height; write xmax as xmin + width, ymax as ymin + height"
        )
    if _are_fractions(written.boxes):
        raise ValueError(
            f"{where}: all {total} boxes lie between 0 and 1, so they are fractions of their images; VOC counts in "
            "pixels; multiply x by the image's width and y by its height"
        )


def _is_other(wrong: int, right: int, total: int) -> bool:
    return wrong >= max(2, MANY * total) and right >= MOST * total


def _are_fractions(boxes: np.ndarray) -> bool:
    return bool(len(boxes)) and bool((boxes >= 0).all() and (boxes <= 1).all() and (boxes % 1 > 0).any())
