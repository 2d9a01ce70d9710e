"""Resizing of images before detection; the new size depends only on the original size and the model."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class ResizeRule:
    """Resizes the shorter side to `min_size` pixels, or less if the longer side would exceed `max_size`.

    Source: Ren et al. 2015, section 3.3.
    """

    min_size: int
    max_size: int

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """The new height and width, at least 1 each, of an image of the given size."""
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: np.ndarray, rule: ResizeRule) -> tuple[np.ndarray, float, float]:
    """Resizes an RGB image, uint8 [H, W, 3], by `rule`, with Pillow's antialiased bilinear filter.

    Returns the image and the factors for x and y coordinates.
    """
    height, width = image.shape[:2]
    new_height, new_width = rule(height, width)
    if (new_height, new_width) != (height, width):
        image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    return image, new_width / width, new_height / height
