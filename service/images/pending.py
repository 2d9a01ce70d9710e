"""The last step of decoding, the resize, which an engine may do instead (contract 2.5).

h, w  an image as decoded;  H, W  its canvas
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.fit import Canvas, Fit, Resize
from service.images.interpolate import interpolate
from service.images.upright import Stored, is_opaque, vertical_first

# A larger image takes more memory while it waits, and longer to copy to a GPU, than it saves. A JPEG is never larger,
# because the codec reduces it to less than twice the sides that the model wants.
MOST_PER_CANVAS_PIXEL = 4


def may_wait(stored: Stored, size: tuple[int, int], target: Fit, antialias: bool) -> bool:
    """Whether an engine can resize the image: 8 bits, opaque, not very large, and not resized already.

    size  the upright decoded image's width and height

    Pillow resizes some tall images along their columns first, and its rounding in between makes a difference.
    """
    wanted = (target.width, target.height)
    return (
        is_opaque(stored, "L", "RGB")
        and size != wanted
        and math.prod(size) <= MOST_PER_CANVAS_PIXEL * math.prod(target.canvas)
        and not (antialias and vertical_first(size, wanted))
    )


def finished(canvas: Canvas) -> Canvas:
    """`canvas` with nothing pending."""
    return replace(canvas, pixels=finish(canvas.pixels, canvas.pending), pending=None) if canvas.pending else canvas


def finish(pixels: NDArray[np.uint8], to_do: Resize) -> NDArray[np.uint8]:
    """Resizes `pixels` [h, w, 3] here, exactly as `decode` does."""
    if not to_do.antialias:
        return interpolate(pixels, to_do.height, to_do.width)
    size = (to_do.width, to_do.height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=to_do.box))
