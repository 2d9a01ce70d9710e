"""Canvases for the first runs of an engine."""

from __future__ import annotations

import math

import numpy as np

from service.images.fit import Canvas

SEED = 0


def busy(size: tuple[int, int]) -> Canvas:
    """An image with edges at every scale: large blocks of random colours, with noise in the lower half.

    It is the same on every call. Like a well exposed photograph it has neither black nor white pixels.
    """
    height, width = size
    random = np.random.default_rng(SEED)
    blocks = random.integers(16, 200, (math.ceil(height / 32), math.ceil(width / 32), 3), dtype=np.uint8)
    image = blocks.repeat(32, axis=0).repeat(32, axis=1)[:height, :width]
    image[height // 2 :] += random.integers(0, 40, (height - height // 2, width, 3), dtype=np.uint8)
    return Canvas(np.ascontiguousarray(image), size, width, height)


def blank(size: tuple[int, int]) -> Canvas:
    height, width = size
    return Canvas(np.zeros((height, width, 3), dtype=np.uint8), size, width, height)
