"""How large an image enters the detector: a function of the image and the model alone."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class ResizeRule:
    """The shorter side becomes `min_size` pixels unless the longer would pass `max_size` (Ren et al., section 3.3)."""

    min_size: int
    max_size: int

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """The height and width, at least 1, that an image of the given size is resized to."""
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: np.ndarray, rule: ResizeRule) -> tuple[np.ndarray, float, float]:
    """An RGB image, uint8 [H, W, 3], resized by `rule` with Pillow's antialiased bilinear filter.

    Returns the image and the factors that x and y coordinates take.
    """
    height, width = image.shape[:2]
    new_height, new_width = rule(height, width)
    if (new_height, new_width) != (height, width):
        image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    return image, new_width / width, new_height / height
