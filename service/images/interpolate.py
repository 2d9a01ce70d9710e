"""Bilinear interpolation between the four nearest pixels, as torchvision's detectors resize.

To make an image smaller, it skips pixels that Pillow's filter would average (antialiasing).

H, W  size before;  h, w  size after.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

BAND = 16  # rows per step, few enough to stay in the processor's cache
BAND_PIXELS = 2**20  # original pixels per step, to bound the memory for the rows of a large image


def interpolate(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resizes `pixels` [H, W, 3] to [h, w, 3].

    The result equals torch.nn.functional.interpolate(mode="bilinear", align_corners=False), rounded to whole values.
    Coordinates and weights are float32, as in torch.
    """
    return interpolate_rows(lambda first, end: pixels[first:end], pixels.shape[:2], height, width)


def interpolate_rows(
    read: Callable[[int, int], NDArray[np.uint8]], size: tuple[int, int], height: int, width: int
) -> NDArray[np.uint8]:
    """As `interpolate`, for an image of `size` (H, W) of which `read(first, end)` returns some rows as [rows, W, 3]."""
    if size == (height, width):
        return read(0, height)
    upper, lower, down = _neighbours(size[0], height)
    left, right, across = _neighbours(size[1], width)
    down, across = down[:, None, None], across[:, None]
    result = np.empty((height, width, 3), np.uint8)
    step = max(1, min(BAND, BAND_PIXELS * height // (size[0] * size[1])))
    for start in range(0, height, step):
        band = slice(start, start + step)
        first = upper[start]
        pixels = read(first, lower[band][-1] + 1)
        rows = pixels[upper[band] - first].astype(np.float32)
        rows += (pixels[lower[band] - first] - rows) * down[band]
        columns = rows.take(left, axis=1)
        columns += (rows.take(right, axis=1) - columns) * across
        columns += 0.5  # to round, because the cast to integers below truncates
        result[band] = columns
    return result


def _neighbours(size: int, new_size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each new pixel of an axis: the two old pixels around it, and its distance from the first (0 to 1)."""
    step = np.float32(size / new_size)
    place = np.maximum((np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5), 0)
    first = np.minimum(place.astype(np.intp), size - 1)
    return first, np.minimum(first + 1, size - 1), (place - first).astype(np.float32)
