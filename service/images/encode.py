"""Encodes an image as PNG or JPEG while other Python threads go on.

Pillow's encoders stop all other Python threads, the event loop among them, while they compress: for milliseconds at a
time for a PNG, and until the end for a JPEG. Only into a real file does Pillow compress without stopping them.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zlib
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.upright import STRIP_PIXELS

SUB = 1  # the filter that stores the difference to the pixel on the left (PNG specification, section 9.2)
RGB = 2  # the colour type (section 11.2.1)
LEVEL = 1  # zlib's default level takes five times as long and saves only a tenth of the size


def jpeg(image: Image.Image) -> bytes:
    """`image`, in mode RGB, as a JPEG of quality 90."""
    with _file() as file:
        image.save(file, "JPEG", quality=90)
        file.seek(0)
        return file.read()


def png(image: Image.Image) -> bytes:
    """`image`, in mode RGB, as a PNG without loss."""
    width, height = image.size
    out = io.BytesIO()
    out.write(b"\x89PNG\r\n\x1a\n")
    _write_chunk(out, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, RGB, 0, 0, 0))
    compressor = zlib.compressobj(LEVEL)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = np.asarray(image.crop((0, top, width, min(top + rows, height))))
        _write_chunk(out, b"IDAT", compressor.compress(_filtered(strip).data))
    _write_chunk(out, b"IDAT", compressor.flush())
    _write_chunk(out, b"IEND", b"")
    return out.getvalue()


def _filtered(strip: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The rows of `strip`, uint8 [h, w, 3], as PNG stores them: uint8 [h, 1 + 3 w], each behind its filter's number."""
    height, width, _ = strip.shape
    rows = np.empty((height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 0] = SUB
    flat = strip.reshape(height, 3 * width)
    rows[:, 1:4] = flat[:, :3]
    np.subtract(flat[:, 3:], flat[:, :-3], out=rows[:, 4:])  # wraps around below 0, as the specification demands
    return rows


def _write_chunk(out: IO[bytes], kind: bytes, data: bytes) -> None:
    out.write(struct.pack(">I", len(data)) + kind)
    out.write(data)
    out.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _file() -> IO[bytes]:
    """A temporary file, in memory if the system supports that."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("drawing"), "w+b")  # noqa: PTH123  a descriptor, not a path
    return tempfile.TemporaryFile()
