"""Unusual and hostile image files, made here: valid ones of every kind, and what an attacker would make of them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 60, 40
_PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
RGBA = Image.fromarray(_PIXELS, "RGBA")
RGB = RGBA.convert("RGB")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes, length: int | None = None, checksum: int | None = None) -> bytes:
    """A PNG chunk, right unless `length` or `checksum` says otherwise."""
    made = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", made)


def png(
    width: int = 4, height: int = 4, depth: int = 8, colour: int = 2, rows: bytes | None = None, *extra: bytes
) -> bytes:
    """A PNG file with this header. `rows`: the data before compression; `extra`: chunks before the data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = bytes((width * 3 + 1) * height) if rows is None else rows
    return (
        PNG_SIGNATURE
        + chunk(b"IHDR", header)
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def valid() -> dict[str, bytes]:
    """Files of WIDTH x HEIGHT pixels that the service answers, whatever their form."""
    palette = RGB.quantize(64)
    exif = Image.Exif()
    exif[0x0112] = 1
    return {
        "jpeg": encoded(RGB, "JPEG"),
        "jpeg, progressive": encoded(RGB, "JPEG", progressive=True),
        "jpeg, grey": encoded(RGB.convert("L"), "JPEG"),
        "jpeg, cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
        "jpeg, 4:4:4 with exif": encoded(RGB, "JPEG", subsampling=0, exif=exif.tobytes()),
        "png": encoded(RGB, "PNG"),
        "png, transparent": encoded(RGBA, "PNG"),
        "png, palette": encoded(palette, "PNG"),
        "png, one bit": encoded(RGB.convert("1"), "PNG"),
        "png, 16 bits": encoded(Image.fromarray(_PIXELS[..., 0].astype(np.uint16) * 257), "PNG"),
        "webp": encoded(RGB, "WEBP"),
        "webp, lossless": encoded(RGBA, "WEBP", lossless=True),
        "bmp": encoded(RGB, "BMP"),
        "bmp, palette": encoded(palette, "BMP"),
        "gif": encoded(palette, "GIF"),
        "gif, animated": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "trailing data": encoded(RGB, "PNG") + b"PK\x03\x04" + bytes(100),
    }


def hostile() -> dict[str, bytes]:
    """Files that must be answered or refused, and must neither stop the service nor cost it much."""
    return dict(_damaged()) | dict(_lying()) | dict(_bombs()) | dict(_disguised())


def _damaged() -> Iterator[tuple[str, bytes]]:
    for name, data in valid().items():
        for share in (1, 10, 50, 99):
            yield f"{name}, cut at {share} %", data[: max(1, len(data) * share // 100)]
        middle = len(data) // 2
        yield f"{name}, zeros in the middle", data[: middle - 8] + bytes(16) + data[middle + 8 :]
        yield f"{name}, doubled", data + data
        yield f"{name}, head alone", data[:24] + bytes(200)
    good = encoded(RGB, "PNG")
    yield "png, wrong checksums", good[:29] + b"\0\0\0\0" + good[33:]
    yield (
        "png, no data",
        PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
    )
    yield "png, no header", PNG_SIGNATURE + chunk(b"IDAT", zlib.compress(bytes(100)))
    yield "png, too little data", png(rows=b"\0")
    yield "png, too much data", png(rows=bytes(10_000))
    yield "png, unknown filter", png(rows=b"\xff" * 52)
    yield "jpeg, only markers", b"\xff\xd8" + b"\xff\xfe\x00\x02" * 5000 + b"\xff\xd9"
    yield (
        "jpeg, no tables",
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01\xff\xd9",
    )


def _lying() -> Iterator[tuple[str, bytes]]:
    for width, height in (
        (0, 0),
        (0, 4),
        (4, 0),
        (2**31 - 1, 2**31 - 1),
        (2**31 - 1, 1),
        (65_535, 65_535),
        (2**32 - 1, 1),
    ):
        yield f"png of {width} x {height}", png(width, height, rows=bytes(20))
    for depth, colour in ((0, 0), (3, 2), (8, 1), (255, 255), (1, 6), (16, 3)):
        yield f"png of depth {depth} and colour type {colour}", png(depth=depth, colour=colour)
    yield "png, chunk longer than the file", PNG_SIGNATURE + chunk(b"IHDR", bytes(13), length=2**31 - 1)
    yield "png, chunk of negative length", PNG_SIGNATURE + chunk(b"IHDR", bytes(13), length=2**32 - 1)
    yield "png, palette of 1,000 colours", png(4, 4, 8, 3, bytes(20), chunk(b"PLTE", bytes(3000)))
    yield "png, no palette", png(4, 4, 8, 3, bytes(20))
    bmp = bytearray(encoded(RGB, "BMP"))
    for name, place, value in (
        ("width", 18, -1),
        ("width", 18, 2**31 - 1),
        ("height", 22, -(2**31)),
        ("height", 22, -HEIGHT),
        ("offset", 10, -1),
        ("compression", 30, 1),
        ("compression", 30, 99),
        ("colours", 46, 2**31 - 1),
        ("header", 14, 2**31 - 1),
    ):
        changed = bytearray(bmp)
        struct.pack_into("<i", changed, place, value)
        yield f"bmp, {name} {value}", bytes(changed)
    gif = encoded(RGB.quantize(64), "GIF")
    yield "gif of 65,535 x 65,535", gif[:6] + b"\xff\xff\xff\xff" + gif[10:]
    yield "gif of 0 x 0", gif[:6] + bytes(4) + gif[10:]
    webp = encoded(RGB, "WEBP")
    yield "webp, length too great", webp[:4] + b"\xff\xff\xff\x7f" + webp[8:]
    yield "webp, length 0", webp[:4] + bytes(4) + webp[8:]
    jpeg = encoded(RGB, "JPEG")
    size = jpeg.index(b"\xff\xc0") + 5
    for width, height in ((0, 0), (65_535, 65_535), (65_535, 1)):
        yield f"jpeg of {width} x {height}", jpeg[:size] + struct.pack(">HH", height, width) + jpeg[size + 4 :]
    for orientation in (0, 9, 65_535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"jpeg of orientation {orientation}", encoded(RGB, "JPEG", exif=exif.tobytes())
    loop = (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\x08"  # directories that name themselves
    )
    yield "jpeg, looped exif", encoded(RGB, "JPEG", exif=loop)
    yield "jpeg, exif of garbage", encoded(RGB, "JPEG", exif=b"Exif\0\0" + b"\xff" * 5000)
    yield "jpeg, profile of garbage", encoded(RGB, "JPEG", icc_profile=b"\xff" * 5000)


def _bombs() -> Iterator[tuple[str, bytes]]:
    text = zlib.compress(bytes(50_000_000))
    yield "png, compressed text of 50 MB", png(4, 4, 8, 2, None, chunk(b"zTXt", b"a\0\0" + text))
    yield "png, compressed profile of 50 MB", png(4, 4, 8, 2, None, chunk(b"iCCP", b"a\0\0" + text))
    yield "png, 2,000 texts", png(4, 4, 8, 2, None, *[chunk(b"tEXt", b"a\0b")] * 2000)
    yield "png of 20,000 x 20,000", encoded(Image.new("1", (20_000, 20_000)), "PNG")
    frame = RGB.quantize(4)
    frames = [frame.rotate(angle) for angle in range(200)]
    yield "gif of 201 frames", encoded(frame, "GIF", save_all=True, append_images=frames)
    jpeg = encoded(RGB, "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    yield "jpeg of 500 scans", jpeg[:-2] + scan * 500 + jpeg[-2:]
    yield "png of 60,000 x 1", encoded(Image.new("L", (60_000, 1)), "PNG")
    yield "png of 1 x 60,000", encoded(Image.new("L", (1, 60_000)), "PNG")


def _disguised() -> Iterator[tuple[str, bytes]]:
    yield "one byte", b"\0"
    yield "zeros", bytes(100_000)
    yield "a web page", b"<!doctype html><title>404</title>"
    yield (
        "svg with an entity",
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>',
    )
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    yield "pdf", b"%PDF-1.7\n" + bytes(100)
    yield "zip", b"PK\x03\x04" + bytes(100)
    yield "pickle", b"cos\nsystem\n(S'true'\ntR."
    yield "a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    yield "tiff", encoded(RGB, "TIFF")
    yield "ppm", encoded(RGB, "PPM")
    yield "icon", encoded(RGB, "ICO")
    yield "tga", encoded(RGB, "TGA")
