"""The range of values in images with more than 8 bits: cameras with 10 or 12 bits often write them into 16-bit files.

Such a file is nearly black to a program that takes 65,535 for white.
"""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np


class ValueRange(NamedTuple):
    """bits: of each sample in the file;  largest: the largest value of any colour (transparency does not count)."""

    bits: int
    largest: int


def value_range(data: bytes) -> ValueRange | None:
    """The range of the image in `data`; None if its samples have at most 8 bits, or are not whole numbers."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if may_be_deep(data) else None
    if pixels is None or pixels.dtype != np.uint16:
        return None
    colours = pixels[..., :3] if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels
    return ValueRange(16, int(colours.max()))


def may_be_deep(data: bytes) -> bool:
    """Whether the samples may have more than 8 bits: a PNG of 16 bits, or any TIFF, whose depth is not at the start."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return len(data) > 24 and data[24] == 16  # the bit depth in IHDR
    return data.startswith((b"II*\0", b"MM\0*"))


def report(ranges: Iterable[ValueRange | None], images: int) -> str | None:
    """A line for a data set of `images` images that says how many are deep, and what their values need; None: none are.

    ranges: of each image that was read.
    """
    largest = [one.largest for one in ranges if one is not None]
    if not largest:
        return None
    bits = max(8, max(largest).bit_length())
    text = f"{len(largest)} of {images} images have 16 bits; their largest value is {max(largest)}"
    if bits == 16:
        return text
    return (
        f"warning: {text}, which needs {bits} bits; {2**bits - 1} must be taken for white, or the images are too dark; "
        "training does so unless --white names another value"
    )
