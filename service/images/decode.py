"""Bytes to an upright RGB image at a model's scale, and boxes back to the original pixels (contract 2).

H, W  canvas;  h, w  the image on it;  *stored* is how the file keeps the pixels, *upright* is after EXIF orientation;
boxes are x1, y1, x2, y2.

Scale and canvas are a function of the image and the model alone, so an answer never depends on who else called.
Everything here is synchronous and free of state: the service runs it in threads, the offline half calls it directly.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from itertools import islice

import numpy as np
from PIL import Image

from service.images.fit import Canvas, Geometry, fit
from service.images.interpolate import interpolate

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
# A 50-megapixel phone (8160 x 6120) fits; Pillow spends up to 8 bytes a pixel on the way to RGB.
MAX_PIXELS = 64_000_000
# A legal file needs about ten scans; a crafted one of a few kB has thousands and each costs a pass over every pixel.
MAX_JPEG_SCANS = 50
# In entropy-coded data FF is always followed by 00, so FF DA can only be a scan (or lie in a small thumbnail). This is
# three times as fast as bytes.count.
JPEG_SCAN = re.compile(rb"\xff\xda")
ORIENTATION = 0x0112  # the EXIF tag
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Our own limit is checked first and is lower; the warning would only fill the log.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # what the decoders say of odd files


class ImageError(ValueError):
    """Bytes that cannot become an image.

    fault: what is wrong, as a clause about "it";  remedy: what to do, as a sentence
    """

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(f"{fault}. {remedy}")
        self.fault = fault
        self.remedy = remedy


class NotAnImageError(ImageError):
    """The bytes are not an image in one of FORMATS, or they are broken."""


class TooManyPixelsError(ImageError):
    """The image has more than `limit` pixels."""

    def __init__(self, size: str, limit: int) -> None:
        super().__init__(f"it has {size}; the limit is {limit:,} pixels", "Send a smaller one.")
        self.limit = limit


def decode(data: bytes, geometry: Geometry, max_pixels: int = MAX_PIXELS) -> Canvas:
    """The image in `data`, upright, RGB, resized for the model.

    Raises ImageError, whatever the bytes are; MemoryError, which is not their fault.
    """
    image = _open(data, max_pixels)
    try:
        return _decode(image, geometry)
    except MemoryError:
        raise
    except Exception as error:  # of a crafted file decoders raise a dozen types
        raise _broken(image) from error


def upright(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in `data` at its own size, upright, mode RGB. Raises as `decode` does."""
    image = _open(data, max_pixels)
    try:
        image.load()
        return _to_rgb(_turn(_flat(image), _orientation(image)))
    except MemoryError:
        raise
    except Exception as error:
        raise _broken(image) from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The header, read and judged; no pixel is decoded yet."""
    if not data:
        raise NotAnImageError("it is empty", "Send the bytes of an image.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:  # beyond Pillow's own limit it does not say the size
        raise TooManyPixelsError("far too many pixels", max_pixels) from None
    except MemoryError:
        raise
    except (Image.UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        names = ", ".join(FORMATS)
        raise NotAnImageError("it is not an image that can be read", f"Send one of {names}.") from error
    except Exception as error:
        raise NotAnImageError("its header is corrupt", "Re-save the file and send it again.") from error
    if image.width * image.height > max_pixels:
        raise TooManyPixelsError(f"{image.width} x {image.height} pixels", max_pixels)
    if image.width < 1 or image.height < 1:
        raise NotAnImageError("it has no pixels", "Send another image.")
    if image.format in ("JPEG", "MPO") and any(islice(JPEG_SCAN.finditer(data), MAX_JPEG_SCANS, None)):
        raise NotAnImageError(f"it is a JPEG of more than {MAX_JPEG_SCANS} scans", "Save it again as a baseline JPEG.")
    return image


def _broken(image: Image.Image) -> NotAnImageError:
    return NotAnImageError(f"the {image.format} data is broken or cut short", "Send the whole file, or save it again.")


def _decode(image: Image.Image, geometry: Geometry) -> Canvas:
    stored_width, stored_height = image.size
    if image.format == "PNG":  # its EXIF may follow the pixels, and asking for it loads them
        image.load()
    orientation = _orientation(image)
    turned = orientation >= 5
    width, height = (stored_height, stored_width) if turned else (stored_width, stored_height)
    target = fit(width, height, geometry)
    if not geometry.antialias:
        image.load()
        pixels = np.asarray(_to_rgb(_turn(_flat(image), orientation)))
        return Canvas(interpolate(pixels, target.height, target.width), target.canvas, width, height)

    # A JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time; `draft` never goes below what it is asked.
    drafted = image.draft(None, (target.height, target.width) if turned else (target.width, target.height))
    box_width, box_height = drafted[1][2:] if drafted else (stored_width, stored_height)
    image.load()

    # Turned before it is resized, so that a turned file gives the very pixels of the upright one.
    image = _turn(_flat(image), orientation)
    box = _box_after_turning(image.size, (box_width, box_height), orientation)
    image = image.resize((target.width, target.height), Image.Resampling.BILINEAR, box=box)
    return Canvas(np.asarray(_to_rgb(image)), target.canvas, width, height)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. What is missing, broken or out of range means 1."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not make the image less of an image
        return 1
    return value if isinstance(value, int) and value in TRANSPOSE else 1


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image


def _box_after_turning(
    size: tuple[int, int], kept: tuple[float, float], orientation: int
) -> tuple[float, float, float, float]:
    """Where the `kept` stored width and height at the stored top left lie once turned to `size`.

    A reduced JPEG has ceil(side / 8) pixels, the last of which may stand for less than a whole one.
    """
    width, height = size
    w, h = reversed(kept) if orientation >= 5 else kept
    left = width - w if orientation in (2, 3, 6, 7) else 0
    top = height - h if orientation in (3, 4, 7, 8) else 0
    return left, top, left + w, top + h


def _flat(image: Image.Image) -> Image.Image:
    """`image` in a mode that can be turned and resized: L, RGB or RGBA."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        # The high byte, as Pillow itself does for 16-bit colour.
        return Image.fromarray((np.asarray(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    """What is transparent shows white, as on a page."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
