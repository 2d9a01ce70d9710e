"""The images that need the most memory for the fewest bytes: 64 million pixels, as many as the service allows."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping

from PIL import Image

SIDE = 8000  # pixels; 8000 × 8000 is MAX_PIXELS


def deep_png(side: int = SIDE) -> bytes:
    """A PNG of side × side zeros in four channels of 16 bits: 512 MB of pixels in half a megabyte."""
    packer = zlib.compressobj(6)
    row = bytes(1 + 8 * side)  # a filter byte, and 8 bytes for each pixel
    packed = b"".join([packer.compress(row) for _ in range(side)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)  # 16 bits, RGBA
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def progressive_jpeg(side: int = SIDE) -> bytes:
    """A progressive JPEG, for which the codec keeps all coefficients in memory."""
    return _saved(Image.new("RGB", (side, side), (90, 120, 30)), "JPEG", progressive=True, quality=75)


def palette_png(side: int = SIDE) -> bytes:
    """A PNG of palette entries with a transparency for each, which becomes RGBA and then RGB."""
    image = Image.new("P", (side, side))
    image.putpalette(bytes(range(256)) * 3)
    return _saved(image, "PNG", transparency=bytes(range(256)))


def webp(side: int = SIDE) -> bytes:
    return _saved(Image.new("RGBA", (side, side), (90, 120, 30, 128)), "WEBP", quality=50, method=0)


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


WORST: Mapping[str, Callable[[int], bytes]] = {
    "16-bit RGBA PNG": deep_png,
    "progressive JPEG": progressive_jpeg,
    "palette PNG": palette_png,
    "WebP": webp,
}
