"""Turns an image in any usual form into the bytes of a file, so that the service's own code decodes all of them."""

import io
import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from service.images.depth import loses_bits

ImageInput = str | PathLike[str] | bytes | Image.Image | np.ndarray
COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # PNG's, by number of channels: grey, RGB, RGBA
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # that Pillow's decoder turns into the same pixels


def as_file(image: ImageInput) -> bytes:
    """The bytes of the file, or a lossless file of a decoded image.

    Raises ValueError for an image in a form that would have to be guessed, OSError for a file that cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | PathLike):
        return Path(image).read_bytes()
    if isinstance(image, Image.Image):
        return _file_of_pillow(image)
    if isinstance(image, np.ndarray):
        return _file_of_array(image)
    raise ValueError(
        f"an image is a path, bytes, a Pillow image or a NumPy array, not {type(image).__name__}; "
        "convert a tensor to an array [H, W, 3] of uint8 in RGB"
    )


def lossless(image: Image.Image, **options: Any) -> bytes:
    """`image` as a PNG."""
    upload = io.BytesIO()
    image.save(upload, "PNG", compress_level=1, **options)
    return upload.getvalue()


def _file_of_pillow(image: Image.Image) -> bytes:
    if loses_bits(image):
        raise ValueError("Pillow drops the low bits of an image with 16 bits per channel; give its path or its bytes")
    if image.mode in ("F", "I"):
        raise ValueError(
            f"a Pillow image of mode {image.mode} does not say which value is white; convert it to L, RGB or I;16"
        )
    exif = image.getexif()
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif image.mode not in PNG_MODES:  # CMYK, YCbCr …
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return lossless(image, exif=exif)


def _file_of_array(array: np.ndarray) -> bytes:
    shape = "×".join(map(str, array.shape))
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in COLOUR_TYPES):
        raise ValueError(f"an array is [H, W], [H, W, 3] (RGB) or [H, W, 4] (RGBA), not {shape}")
    if not array.size:
        raise ValueError(f"an array of {shape} has no pixels")
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"an array of {array.dtype} does not say which value is white; convert it to uint8, with white at 255"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return (
        _png_of_16_bits(array) if array.dtype == np.uint16 else lossless(Image.fromarray(np.ascontiguousarray(array)))
    )


def _png_of_16_bits(values: np.ndarray) -> bytes:
    """uint16 [H, W], [H, W, 3] or [H, W, 4] as a PNG. Pillow writes 16 bits for grey only."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    samples = np.ascontiguousarray(values, ">u2").view(np.uint8).reshape(height, -1)
    rows = np.hstack([np.zeros((height, 1), np.uint8), samples])  # each begins with its filter: none
    colour = COLOUR_TYPES[1 if values.ndim == 2 else values.shape[2]]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
