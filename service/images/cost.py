"""What an image will cost, estimated from its header before a pixel is decoded: memory, and time of one thread.

`memory` is an upper limit of the bytes that decoding or drawing adds at its peak, measured for every format and mode
(tests/service/images/test_cost.py). `seconds` is a rough figure for a core of a server; it only tells small images from
large ones.

W, H  the stored image;  w, h  the image at the model's size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from service.images.decode import frame_on_white
from service.images.depth import WHITE, needs_low_bytes
from service.images.fit import Geometry, fit
from service.images.interpolate import BAND, BAND_PIXELS
from service.images.parts import png_bytes_beside_pixels
from service.images.pending import MOST_PER_CANVAS_PIXEL
from service.images.upright import STRIP_PIXELS, swapped, vertical_first

MIB = 2**20
# An image within both limits is light: it may be decoded by any thread, and its memory is set aside for each thread.
LIGHT_BYTES = 24 * MIB
LIGHT_SECONDS = 0.1

# A small PNG file may hold much compressed text; Pillow's own limit is 64 MiB.
MAX_TEXT_BYTES = 2 * MIB
PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES

# Bytes per pixel of Pillow's images. Every other mode has four.
BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
OPAQUE_STRIP_BYTES = 12  # per pixel of a strip in mode L or RGB: cut out, turned, and resized
STRIP_BYTES = 24  # per pixel of a strip: its copies in the stored mode, the plain mode, turned, and resized
LOW_STRIP_BYTES = 24  # more, where the low bytes of 16-bit samples are decoded too
LOW_BYTES = 4  # per pixel of the image with these low bytes
ROW_BYTES = 32  # per pixel of a row: the codec's buffers for some rows, and Pillow's pointers to them
# Per pixel at the model's size: the resized image; with transparency, also its copies on white and in RGB; the resized
# image with its rows as bytes, and these joined; the array that interpolation fills.
CANVAS_BYTES, TRANSPARENT_CANVAS_BYTES, ARRAY_BYTES, INTERPOLATED_BYTES = 4, 16, 10, 3
WEBP_BYTES = 16  # two canvases of the animation decoder, the frame as bytes, and the image
# Planes of up to 16 bits for each of four channels, and their copy turned or in RGB, the frame as bytes, and the image.
AVIF_BYTES, HEIF_BYTES = 20, 22
FRAME_BYTES = 4  # of these per pixel: the frame as bytes, which is released once the image is complete
SCREEN_BYTES = 10  # a GIF's frame and its part that is copied (1 each), that part in RGB, and the screen (4 each)
COEFFICIENT_BYTES = 2  # per sample of a JPEG with several scans, whose coefficients are all kept until the last scan
RGB_BYTES = 3  # per pixel of an image that is left to the engine at its decoded size
BAND_BYTES = 16  # per pixel of a band of rows for interpolation: the strip in RGB, as bytes, and as an array
# Per pixel of the rows that are interpolated at a time: the upper and the lower row with three samples of a byte each,
# and three arrays of the same samples as float32.
FLOAT_BYTES = 2 * 3 + 3 * 3 * 4
# Copies of the whole file, because Pillow or the decoder's library makes one, and metadata may be all of it. The
# metadata is copied by the container's library, into `Image.info`, and by Pillow's reader of EXIF data.
FILE_COPIES = {"WEBP": 3, "TIFF": 2, "AVIF": 5, "HEIF": 5}
# Pillow holds every segment of a JPEG or chunk of a PNG beside the pixels. It joins those of EXIF data and of profiles
# one by one, so that the old and the new block exist for a moment, and copies EXIF data twice to read the orientation.
METADATA_COPIES = 5
# Per pixel, for noise. The growing buffer of a PNG is copied when it moves.
RESPONSE_BYTES = {"image/png": 7, "image/jpeg": 2.5}
FIXED_BYTES = 3 * MIB  # Python's objects, a codec's tables, and fragments in the heap, which vary by 1 MiB
TEXT_COPIES = 4  # of the decompressed text of a PNG: as bytes, and as str with up to two bytes for each of them
DEFLATE_RATIO = 1032  # the most by which compressed text can grow (the documentation of zlib)

NANOSECONDS = 1e-9
PER_FILE_BYTE = 6  # nanoseconds for entropy decoding
PER_RLE_BYTE = 250  # Pillow decodes run lengths in Python
PER_PIXEL = {"JPEG": 3, "MPO": 3, "PNG": 6, "WEBP": 16, "GIF": 4, "BMP": 4, "TIFF": 6, "AVIF": 30, "HEIF": 40}
PER_CONVERTED_PIXEL = 8
PER_ENCODED_PIXEL = 40  # noise takes up to 110
PER_SCANNED_PIXEL = 2  # for each scan of a JPEG with several


class Cost(NamedTuple):
    """Bytes at the peak, and seconds of one thread."""

    memory: int
    seconds: float

    @property
    def light(self) -> bool:
        return self.memory <= LIGHT_BYTES and self.seconds <= LIGHT_SECONDS


def of_decoding(image: Image.Image, data: bytes, geometry: Geometry) -> Cost:
    """The cost of `decode` for the file `data`, whose header is `image`."""
    scale = _draft_scale(image, geometry)
    loaded, seconds = _loading(image, data, scale, geometry.white)
    width, height = -(-image.width // scale), -(-image.height // scale)
    pixels = width * height
    if geometry.antialias:
        extra = _resizing_bytes(image, (width, height), geometry)
    else:
        extra = _interpolation_bytes(image, geometry)
    if geometry.resize_later:
        most = MOST_PER_CANVAS_PIXEL * max(map(math.prod, geometry.canvases))
        extra = max(extra, min(pixels, most) * RGB_BYTES + _strip_pixels(width, height) * STRIP_BYTES)
    extra += _low_extra(image, geometry.white)
    seconds += pixels * _conversion(image) * NANOSECONDS
    # Both are released before the image is resized.
    array = pixels * len(image.getbands()) if _is_decoded_to_array(image) else 0
    return Cost(loaded + max(extra, array, _coefficient_bytes(image, data)), seconds)


def of_drawing(image: Image.Image, data: bytes, media_type: str, white: int = WHITE) -> Cost:
    """The cost of drawing on the image in `data`, whose header is `image`, and encoding the result.

    white  as in `Geometry`
    """
    loaded, seconds = _loading(image, data, 1, white)
    loaded += _coefficient_bytes(image, data)
    pixels = image.width * image.height
    strip = _strip_pixels(*image.size) * STRIP_BYTES + _low_extra(image, white)
    stored = _stored_bytes(image)
    kept = (stored - FRAME_BYTES if stored > SCREEN_BYTES else stored) + LOW_BYTES * needs_low_bytes(image, white)
    upright = pixels * (kept + 4) + strip  # a turned image is a copy, too
    # An image that is opaque RGB already is drawn on as it is, with all that its decoder still holds.
    encoded = pixels * (max(kept, 4) + RESPONSE_BYTES[media_type]) + strip
    seconds += pixels * (_conversion(image) + PER_ENCODED_PIXEL) * NANOSECONDS
    file = FIXED_BYTES + _file_bytes(image, data, white)
    return Cost(int(max(loaded, file + upright, file + encoded)), seconds)


def _low_extra(image: Image.Image, white: int) -> int:
    return _strip_pixels(*image.size) * LOW_STRIP_BYTES if needs_low_bytes(image, white) else 0


def _loading(image: Image.Image, data: bytes, scale: int, white: int) -> tuple[int, float]:
    """Bytes and seconds until all pixels are decoded, at 1/`scale` of the size, without `_coefficient_bytes`."""
    pixels = image.width * image.height
    kept = -(-image.width // scale) * -(-image.height // scale)
    memory = FIXED_BYTES + _file_bytes(image, data, white) + image.width * ROW_BYTES + image.height * 8
    memory += kept * _stored_bytes(image)
    if image.format == "TIFF":
        memory += _tiff_bytes(image)
    nanoseconds = len(data) * PER_FILE_BYTE + (pixels / 4 + kept * PER_PIXEL.get(image.format or "", 16))
    if image.format in ("JPEG", "MPO") and (scans := _scans(data)) > 1:
        nanoseconds += scans * pixels * PER_SCANNED_PIXEL
    if needs_low_bytes(image, white):
        memory += pixels * LOW_BYTES
        nanoseconds *= 2
    if image.format == "BMP" and _is_run_length_encoded(image):
        memory += 2 * pixels
        nanoseconds += len(data) * PER_RLE_BYTE
    return memory, nanoseconds * NANOSECONDS


def _is_decoded_to_array(image: Image.Image) -> bool:
    """Whether `integrity` decodes a JPEG into an array, to look for damage, and copies the image from it."""
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")


def _coefficient_bytes(image: Image.Image, data: bytes) -> int:
    """Bytes of the coefficients of a JPEG with several scans, which are there until its pixels are complete."""
    if image.format not in ("JPEG", "MPO") or _scans(data) == 1:
        return 0
    return int(image.width * image.height * COEFFICIENT_BYTES * _samples(image))


def _file_bytes(image: Image.Image, data: bytes, white: int) -> int:
    """The bytes of copies of the file, or of its metadata: EXIF data, profiles, text and unknown parts.

    `depth` copies the file to decode the low bytes of grey and alpha, and `integrity` a JPEG that is damaged.
    """
    copies = FILE_COPIES.get(image.format or "", 1) + needs_low_bytes(image, white)
    metadata = text = 0
    if image.format == "PNG":
        metadata = png_bytes_beside_pixels(data)
        text = min(MAX_TEXT_BYTES, metadata * DEFLATE_RATIO)
    elif image.format in ("JPEG", "MPO"):
        start = _first_scan(data)
        metadata = start[0] if start else len(data)
    return len(data) * copies + metadata * METADATA_COPIES + text * TEXT_COPIES


def _stored_bytes(image: Image.Image) -> int:
    """Bytes per pixel while the file is being decoded."""
    special = {"WEBP": WEBP_BYTES, "AVIF": AVIF_BYTES, "HEIF": HEIF_BYTES}
    if image.format == "GIF" and frame_on_white(image):
        return SCREEN_BYTES
    return special.get(image.format or "") or BYTES.get(image.mode, 4)


def _tiff_bytes(image: Any) -> int:
    """What a TIFF takes beside its pixels: a strip or tile, and a copy of the image if it is turned."""
    tags = image.tag_v2
    bits = tags.get(258, 1)
    rows, columns = tags.get(323, tags.get(278, image.height)), tags.get(322, image.width)
    pixels = columns * (rows if 323 in tags else min(rows, max(image.size)))
    piece = pixels * -(-(sum(bits) if isinstance(bits, tuple) else bits * tags.get(277, 1)) // 8)
    if tags.get(262) == 6:  # libtiff converts YCbCr to RGB with four bytes, from a copy that may have four, too
        piece += pixels * 2 * 4
    coefficients = pixels * COEFFICIENT_BYTES * 3 if tags.get(259) in (6, 7) else 0
    turned = image.width * image.height * BYTES.get(image.mode, 4) if tags.get(274, 1) != 1 else 0
    return int(piece + coefficients + turned)


def _strip_pixels(width: int, height: int) -> int:
    """The most pixels of a strip; a single row or column may have more than STRIP_PIXELS."""
    return min(width * height, max(STRIP_PIXELS, width, height))


def _resizing_bytes(image: Image.Image, size: tuple[int, int], geometry: Geometry) -> int:
    """Bytes to resize the decoded image, of this size, in the orientation in which they are more.

    They are those of the image between the two passes, a strip, and the result. The array of the result is made after
    the others have been released.
    """
    opaque = _is_opaque(image)
    strip = _strip_pixels(*size) * (OPAQUE_STRIP_BYTES if opaque else STRIP_BYTES)
    found = []
    for orientation in (1, 6):
        width, height = swapped(size, orientation)
        target = fit(width, height, geometry)
        result = target.width * target.height
        rows_first = not vertical_first((width, height), (target.width, target.height))
        between = 4 * (target.width * height if rows_first else width * target.height)
        last = 0 if opaque else between + result * TRANSPARENT_CANVAS_BYTES
        found.append(max(between + strip + result * CANVAS_BYTES, last, result * ARRAY_BYTES))
    return max(found)


def _interpolation_bytes(image: Image.Image, geometry: Geometry) -> int:
    """Bytes of a band of rows, of the rows that are interpolated at a time, and of the result (`interpolate_rows`)."""
    low = LOW_STRIP_BYTES if needs_low_bytes(image, geometry.white) else 0
    found = []
    for orientation in (1, 6):
        width, height = swapped(image.size, orientation)
        target = fit(width, height, geometry)
        step = max(1, min(BAND, BAND_PIXELS * target.height // (width * height)))
        read = min(height, -(-(step - 1) * height // target.height) + 2) * width
        band = max(read, min(width * height, STRIP_PIXELS))  # a small image is read as a whole
        floats = step * (width + target.width) * FLOAT_BYTES
        found.append(band * (BAND_BYTES + low) + floats + target.width * target.height * INTERPOLATED_BYTES)
    return max(found)


def _conversion(image: Image.Image) -> float:
    """Nanoseconds per pixel to convert and resize."""
    return 2 if _is_opaque(image) else PER_CONVERTED_PIXEL


def _is_opaque(image: Image.Image) -> bool:
    """Whether the image needs no conversion before it is resized."""
    return image.mode in ("L", "RGB") and not image.has_transparency_data


def _draft_scale(image: Image.Image, geometry: Geometry) -> int:
    """The scale at which `decode` lets the codec reduce a JPEG: 1, 2, 4 or 8. Orientation can only swap the sides."""
    if image.format not in ("JPEG", "MPO") or not geometry.antialias or image.mode not in ("L", "RGB", "CMYK", "YCbCr"):
        return 1
    scales = []
    for orientation in (1, 6):
        size = swapped(image.size, orientation)
        target = fit(*size, geometry)
        scale = min(size[0] // target.width, size[1] // target.height)
        scales.append(next((each for each in (8, 4, 2) if scale >= each), 1))
    return min(scales)


def _samples(image: Any) -> float:
    """Samples per pixel of a JPEG: 3 without subsampling, 1.5 for 4:2:0."""
    layers = getattr(image, "layer", [])  # each as (id, horizontal, vertical, table)
    wide, high = (max((layer[axis] for layer in layers), default=1) for axis in (1, 2))
    return sum(layer[1] * layer[2] for layer in layers) / (wide * high) if layers else 4


def _scans(data: bytes) -> int:
    """The number of scans of a JPEG, as far as it matters: 1 means that libjpeg keeps no coefficients."""
    start = _first_scan(data)
    if start is None:
        return data.count(b"\xff\xda")
    frame_components, scan_components = start[1], data[start[0] + 4] if start[0] + 4 < len(data) else 0
    if not start[2] and frame_components == scan_components:
        return 1
    return max(2, data.count(b"\xff\xda", start[0]))


def _first_scan(data: bytes) -> tuple[int, int, bool] | None:
    """Where the first scan begins, the frame's components, and whether it is progressive. None if the walk fails."""
    at, components, progressive = 2, 0, False
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xDA:
            return at, components, progressive
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components, progressive = data[at + 9], marker not in (0xC0, 0xC1)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _is_run_length_encoded(image: Image.Image) -> bool:
    return image.info.get("compression") in (1, 2)  # 8 and 4 bits per pixel
