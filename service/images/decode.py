"""Decodes an image's bytes to upright RGB pixels at a model's scale (contract 2).

*Stored* pixels are as in the file; *upright* pixels are after the EXIF orientation has been applied.

These functions are synchronous and have no state. The service calls them in threads, the offline half directly.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from service.images import depth, file_types, formats, integrity, iso_media, parts, tiff
from service.images.fit import Canvas, Geometry, Resize, fit
from service.images.interpolate import interpolate_rows
from service.images.pending import may_wait
from service.images.upright import TRANSPOSE, resized, rgb, rows_reader, swapped
from service.images.upright import pixels as upright_pixels

# Allows photos from 50-megapixel phones (8160 x 6120). Pillow needs up to 8 bytes per pixel to convert them to RGB.
MAX_PIXELS = 64_000_000
# An ordinary file has about ten scans. A crafted file of a few kB can have thousands, each of which costs a pass over
# every pixel.
MAX_JPEG_SCANS = 50
# In entropy-coded data FF is always followed by 00, so FF DA can only start a scan, or be part of a small embedded
# thumbnail. The regular expression is three times as fast as bytes.count.
JPEG_SCAN = re.compile(rb"\xff\xda")
ORIENTATION = 0x0112  # the EXIF tag
# Pillow's modes of TIFF images whose numbers mean a colour or a shade. In others (F, I, LAB) 0 to 1, 0 to 4,000,000 or
# -50 to 50 may be the range.
TIFF_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"))
_ORDINARY_TIFF = "Save it in RGB or shades of grey, with 8 or 16 bits without a sign for each channel."
HeaderCheck = Callable[[Image.Image], None]

# `decode` checks a lower limit of its own; Pillow's warning would only fill the log.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # decoders' warnings about unusual files


class ImageError(ValueError):
    """The bytes cannot be decoded.

    fault   a clause whose subject is the upload, such as "it is empty"
    remedy  a sentence
    """

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(f"{fault}. {remedy}")
        self.fault = fault
        self.remedy = remedy


class NotAnImageError(ImageError):
    """The bytes are not an image in a format that is switched on, or the image is broken."""


class DamagedImageError(ImageError):
    """The image can be decoded, but it has `warnings`, words of `integrity.WARNINGS`, and the client wants none."""

    def __init__(self, warnings: tuple[str, ...]) -> None:
        faults = "; ".join(map(integrity.clause, warnings))
        remedy = "Send the original file."
        if any(word not in (*depth.RANGE_WARNINGS, integrity.FURTHER_PAGES) for word in warnings):
            what = "is damaged or incomplete"
        elif any(word in depth.RANGE_WARNINGS for word in warnings):
            what = "has values that do not fit the model"
        else:
            what, remedy = "has more than one image", "Send each of them as an image of its own."
        remedy += " Without strict=true this one is answered, with a warning."
        super().__init__(f"it {what}: {faults}", remedy)
        self.warnings = warnings


class TooManyPixelsError(ImageError):
    """The image has more than `limit` pixels."""

    def __init__(self, size: str, limit: int) -> None:
        super().__init__(f"it has {size}; the limit is {limit:,} pixels", "Send a smaller one.")
        self.limit = limit


def decode(
    data: bytes, geometry: Geometry, max_pixels: int = MAX_PIXELS, before_pixels: HeaderCheck | None = None
) -> Canvas:
    """The image in `data`, upright, RGB, resized for the model, with warnings if parts of it are missing or damaged.

    before_pixels  called with the header before any pixel is decoded; it may raise an error of its own

    With `geometry.resize_later`, an ordinary image is not resized, and its canvas says what is pending (`pending`).
    For any bytes it raises only NotAnImageError, TooManyPixelsError or MemoryError.
    """
    image = _open(data, max_pixels)
    if before_pixels:
        before_pixels(image)
    deep = _deep(image, geometry.white)
    try:
        return _decode(_on_screen(image), data, geometry, deep)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types of exception for crafted files
        raise _broken(image.format) from error


def upright(
    data: bytes, max_pixels: int = MAX_PIXELS, before_pixels: HeaderCheck | None = None, white: int = depth.WHITE
) -> Image.Image:
    """The image in `data` at its own size, upright, mode RGB. Raises what `decode` raises.

    white  the value of a 16-bit sample that means white
    """
    image = _open(data, max_pixels)
    if before_pixels:
        before_pixels(image)
    deep = _deep(image, white)
    try:
        image = _on_screen(image)
        image.load()
        orientation = orientation_of(image)
        return rgb(_stored(image, deep, white)[0], orientation)
    except MemoryError:
        raise
    except Exception as error:
        raise _broken(image.format) from error


def damage(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, ...]:
    """The warnings that `decode` gives for `data`, without a model. Raises what `decode` raises."""
    image = _open(data, max_pixels)
    try:
        if integrity.can_be_scaled(data, image):
            image.draft(None, (1, 1))  # damage shows at any scale
        return integrity.load(_on_screen(image), data)[1]
    except MemoryError:
        raise
    except Exception as error:
        raise _broken(image.format) from error


def value_range(data: bytes, max_pixels: int = MAX_PIXELS) -> depth.ValueRange | None:
    """The bits of a sample and the largest value of the image in `data`; None if it has at most 8 bits.

    The pixels are decoded only if the image has more. Raises what `decode` raises.
    """
    image = _open(data, max_pixels)
    deep = _deep(image, white=0)  # no value means white, so that all bits are read
    if deep is None:
        return None
    try:
        image.load()
        return depth.ValueRange(deep.bits, deep.pixels(image, white=0).largest())
    except MemoryError:
        raise
    except Exception as error:
        raise _broken(image.format) from error


def _deep(image: Image.Image, white: int) -> depth.Opened | None:
    """What `depth` must know of an opened image before it is decoded."""
    try:
        return depth.opened(image, white)
    except depth.UnreadableDepthError as error:
        raise NotAnImageError(str(error), "Save it with 8 bits per channel, or as an ordinary 16-bit PNG.") from error


def _stored(
    image: Image.Image, deep: depth.Opened | None, white: int
) -> tuple[Image.Image | depth.DeepImage, tuple[str, ...]]:
    """The decoded image in the form that `upright` takes, and the warnings about its values."""
    if deep is None:
        return image, ()
    pixels = deep.pixels(image, white)
    return image if pixels.keeps_high_bytes else pixels, pixels.warnings()


class Stored(NamedTuple):
    """What a file says of its image.  width, height: before turning;  orientation: 1 to 8, as in EXIF."""

    format: str
    width: int
    height: int
    orientation: int


def stored(data: bytes, max_pixels: int = MAX_PIXELS) -> Stored:
    """What the file in `data` says of its image. Decodes pixels only of a PNG, whose EXIF data may follow them.

    Raises what `decode` raises.
    """
    image = _open(data, max_pixels)
    try:
        if image.format == "PNG":
            image.load()
        return Stored(image.format or "", *image.size, orientation_of(image))
    except MemoryError:
        raise
    except Exception as error:
        raise _broken(image.format) from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Reads and checks the header, without decoding any pixels."""
    if not data:
        raise NotAnImageError("it is empty", "Send the bytes of an image.")
    if parts.has_too_many(data):
        raise NotAnImageError("its header has more parts than any ordinary file", "Save the image again and send it.")
    image = _opened(data, max_pixels)
    if image.width * image.height > max_pixels:
        raise TooManyPixelsError(f"{image.width} x {image.height} pixels", max_pixels)
    if image.width < 1 or image.height < 1:
        raise NotAnImageError("it has no pixels", "Send another image.")
    if image.format in ("JPEG", "MPO") and any(islice(JPEG_SCAN.finditer(data), MAX_JPEG_SCANS, None)):
        raise NotAnImageError(f"it is a JPEG of more than {MAX_JPEG_SCANS} scans", "Save it again as a baseline JPEG.")
    if image.format in ("AVIF", "HEIF"):
        _check_items(image, data)
    return image


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """What Pillow reads from the header."""
    further_pages = False
    if tiff.is_tiff(data):
        data, further_pages = _first_page(data)
    try:
        image = Image.open(io.BytesIO(data), formats=formats.accepted())
    except Image.DecompressionBombError:  # from Pillow's own limit; this error does not contain the size
        raise TooManyPixelsError("far too many pixels", max_pixels) from None
    except MemoryError:
        raise
    except (Image.UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        raise (_unusual_tiff() if tiff.is_tiff(data) else _unreadable(data)) from error
    except Exception as error:
        raise NotAnImageError("its header is corrupt", "Re-save the file and send it again.") from error
    if image.format == "TIFF" and image.mode not in TIFF_MODES:
        raise NotAnImageError(
            "it is a TIFF image with colours or numbers that have no fixed meaning as RGB", _ORDINARY_TIFF
        )
    if further_pages:
        image.info[integrity.FURTHER_PAGES] = True
    return image


def _unusual_tiff() -> NotAnImageError:
    """The error for a TIFF that is whole, as far as `tiff` has checked it, but that Pillow cannot open."""
    return NotAnImageError("it is a TIFF image that stores its pixels in an unusual way, or is broken", _ORDINARY_TIFF)


def _first_page(data: bytes) -> tuple[bytes, bool]:
    """A TIFF file with its first page alone, and whether it had others."""
    known = file_types.of(data)
    if "TIFF" not in formats.accepted() or not known or known.format != "TIFF":
        raise _unreadable(data)  # a camera's raw file would be read as the small preview in it
    try:
        return tiff.first_page(data)
    except tiff.TiffError as error:
        raise NotAnImageError(error.fault, error.remedy) from error


def _check_items(image: Image.Image, data: bytes) -> None:
    """Raises NotAnImageError if an AVIF or HEIF file would take far more to decode than its header says."""
    if image.format == "AVIF" and iso_media.is_animation(data):
        raise NotAnImageError("it is an AVIF animation", "Send a single image.")
    try:
        iso_media.check_items(data)
        if image.format == "AVIF":
            iso_media.check_av1_frames(data, *image.size)
            image.info.pop("xmp", None)  # only the file's own rotation counts, and Pillow would look here for another
    except iso_media.IsoMediaError as error:
        raise NotAnImageError(error.fault, "Save the image again and send it.") from error


def _unreadable(data: bytes) -> NotAnImageError:
    """The error for a file that Pillow cannot open, with what it is if that can be told."""
    accepted = formats.accepted()
    known = file_types.of(data)
    if known and known.format in accepted:
        return _broken(known.format)
    if not known:
        return NotAnImageError("it is not an image that can be read", f"Send one of {formats.in_words(accepted)}.")
    remedy = f"This service reads {formats.in_words(accepted)}."
    if known.format:
        setting = ",".join((*accepted, known.format)).lower()
        remedy += f" Convert the image to one of them, or start the service with IMAGE_FORMATS={setting}."
        if missing := formats.missing([known.format]):
            remedy += f" ({missing[0].upper()}{missing[1:]}.)"
    return NotAnImageError(f"it is {known.words}", remedy)


def _on_screen(image: Image.Image) -> Image.Image:
    """A GIF's first frame on a white screen, where the frame is smaller than the screen and has no transparent colour.

    Pillow fills the rest with the first colour of the palette. If the frame has a transparent colour, Pillow fills it
    with that, which becomes white like any transparent pixel. Any other image is returned as it is.
    """
    frame = frame_on_white(image)
    if not frame:
        return image
    screen = Image.new("RGB", image.size, "white")
    screen.format = image.format
    screen.paste(image.crop(frame).convert("RGB"), frame)
    return screen


def frame_on_white(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The place of a GIF's first frame if a white screen is made for it (`_on_screen`). None for any other image."""
    assert isinstance(image, ImageFile.ImageFile)
    frame = image.tile[0].extents if image.tile else None
    if image.format != "GIF" or frame == (0, 0, *image.size) or "transparency" in image.info:
        return None
    return frame


def _broken(format: str | None) -> NotAnImageError:
    name = formats.FORMATS[format].name if format in formats.FORMATS else format
    return NotAnImageError(f"the {name} data is broken or cut short", "Send the whole file, or save it again.")


def _decode(image: Image.Image, data: bytes, geometry: Geometry, deep: depth.Opened | None) -> Canvas:
    if image.format in ("PNG", "TIFF"):
        image.load()  # a PNG's EXIF data may follow the pixels; Pillow turns a TIFF upright when it loads it
    orientation = orientation_of(image)
    width, height = swapped(image.size, orientation)
    target = fit(width, height, geometry)
    kept = _draft(image, swapped((target.width, target.height), orientation)) if geometry.antialias else image.size
    image, warnings = integrity.load(image, data)
    stored, out_of_range = _stored(image, deep, geometry.white)
    decoded = swapped(image.size, orientation)
    box = _box_after_turning(decoded, kept, orientation)
    to_do: Resize | None = None
    if geometry.resize_later and may_wait(stored, decoded, target, geometry.antialias):
        pixels = upright_pixels(stored, orientation)
        to_do = Resize(target.height, target.width, box, geometry.antialias)
    elif geometry.antialias:
        pixels = np.asarray(resized(stored, orientation, (target.width, target.height), box))
    else:
        rows = rows_reader(stored, orientation)
        pixels = interpolate_rows(rows, decoded[::-1], target.height, target.width)
    return Canvas(pixels, target.canvas, width, height, (*warnings, *out_of_range), to_do)


def _draft(image: Image.Image, size: tuple[int, int]) -> tuple[float, float]:
    """Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, in a fraction of the time, but not below `size`.

    Returns the width and height of the original on the decoded image, which may be fractions.
    """
    drafted = image.draft(None, size)
    return drafted[1][2:] if drafted else image.size


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. A missing, broken or unknown value counts as 1."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # the image can be decoded even if its EXIF block is broken
        return 1
    return value if isinstance(value, int) and value in TRANSPOSE else 1


def _box_after_turning(
    size: tuple[int, int], kept: tuple[float, float], orientation: int
) -> tuple[float, float, float, float]:
    """The box that the top left `kept` width and height of the stored image cover after it was turned to `size`.

    A JPEG decoded at 1/8 has ceil(side / 8) pixels per side. The last of them may represent fewer than eight original
    pixels, so the resize must count only a part of it.
    """
    width, height = size
    w, h = reversed(kept) if orientation >= 5 else kept
    left = width - w if orientation in (2, 3, 6, 7) else 0
    top = height - h if orientation in (3, 4, 7, 8) else 0
    return left, top, left + w, top + h
