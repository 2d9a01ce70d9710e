"""Chooses an image's size and canvas, and maps boxes back to the original pixels (contract 2).

H, W  canvas;  h, w  the image on it;  boxes are x1, y1, x2, y2.

Size and canvas depend only on the image and the model, so an answer never depends on other requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.images.depth import WHITE


@dataclass(frozen=True)
class Geometry:
    """How images are converted, resized and padded for a model.

    canvases   each as (H, W)
    min_size   length of the shorter side after resizing, in pixels
    max_size   upper limit of the longer side; it takes precedence over min_size
    antialias  True: use Pillow's filter and round sides to whole pixels; False: resize like torchvision's detectors
    white      the value of a 16-bit sample that means white (`depth`)
    resize_later  whether `decode` leaves the resize of ordinary images to the engine (`pending`)
    """

    canvases: tuple[tuple[int, int], ...]
    min_size: int
    max_size: int
    antialias: bool = True
    white: int = WHITE
    resize_later: bool = False


class Fit(NamedTuple):
    """An image's size on its canvas, and the canvas as (H, W)."""

    height: int
    width: int
    canvas: tuple[int, int]


class Resize(NamedTuple):
    """How pixels must be resized: their part `box` (left, upper, right, lower; may be fractions) to height x width."""

    height: int
    width: int
    box: tuple[float, float, float, float]
    antialias: bool


@dataclass(frozen=True)
class Canvas:
    """One decoded image, ready for a batch.

    pixels         uint8 [h, w, 3], upright RGB at the model's scale, for the top left of the canvas; if `pending` is
                   set, as decoded
    size           the canvas (H, W)
    width, height  of the upright original
    warnings       words of `integrity.WARNINGS`, about damage, or values that do not fit the model
    pending        how an engine must still resize `pixels`
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    width: int
    height: int
    warnings: tuple[str, ...] = ()
    pending: Resize | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image on the canvas, after resizing."""
        return (self.pending.height, self.pending.width) if self.pending else self.pixels.shape[:2]

    @property
    def memory_pixels(self) -> int:
        """Pixels that the image takes in memory until its run: those of its canvas, or as decoded if these are more."""
        return max(math.prod(self.size), math.prod(self.pixels.shape[:2]))


def fit(width: int, height: int, geometry: Geometry) -> Fit:
    """The size of a `width` x `height` image after resizing, and the smallest canvas that holds it (first of equals).

    Raises ValueError if no canvas holds it; `load_model` refuses a model for which that can happen.
    """
    scale = min(geometry.min_size / min(width, height), geometry.max_size / max(width, height))
    to_pixels = round if geometry.antialias else int
    w, h = max(1, to_pixels(width * scale)), max(1, to_pixels(height * scale))
    holding = [canvas for canvas in geometry.canvases if canvas[0] >= h and canvas[1] >= w]
    if not holding:
        raise ValueError(f"no canvas of {geometry.canvases} holds {h} x {w}")
    return Fit(h, w, min(holding, key=lambda canvas: canvas[0] * canvas[1]))


def to_original(boxes: NDArray[np.float32], canvas: Canvas) -> NDArray[np.float32]:
    """`boxes` [R, 4] on the canvas as pixels of the upright original, clipped to it."""
    h, w = canvas.image_size
    stretch = np.array([canvas.width / w, canvas.height / h] * 2, dtype=np.float32)
    bound = np.array([canvas.width, canvas.height] * 2, dtype=np.float32)
    mapped: NDArray[np.float32] = np.clip(boxes * stretch, 0, bound)
    return mapped
