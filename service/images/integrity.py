"""Reports images that a decoder accepts although some of their pixels are missing or wrong.

The pixels stay those of Pillow, whose decoder for JPEG ignores libjpeg's warnings and whose decoder for PNG checks no
checksum after the header. So a JPEG is decoded by simplejpeg, which uses the same library with the same result and
reports its warnings. Only if there is one does Pillow decode the file again, as it would have done alone.

What cannot be known: changed bits that are again a valid file, such as a JPEG whose Huffman codes stay in step, a WebP
(which has neither checksums nor end codes), the pixels of a BMP, and colours that a changed table gives. Bytes after
the end of an image are ignored, because no pixel depends on them.
"""

from __future__ import annotations

import re
import struct
import threading
import zlib
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image

from service.images.depth import RANGE_WARNINGS, RangeWarning
from service.images.parts import has_second_frame

# Clauses that say what is wrong and what follows from it. The words are fixed, for programs.
WARNINGS = {
    "damaged_data": "the JPEG data is damaged or ends early, so the decoder filled in what it could not read",
    "missing_scans": "the JPEG ends before its last scan, so it has less detail or colour than the original",
    "missing_rows": "the PNG data ends before the last row, so the missing rows are black or transparent",
    "further_pages": "the file has several pages, images or frames, and only the first one is used",
    "missing_end": "the PNG file has no end marker, so what may follow its pixels, such as the orientation, is lost",
    "unknown_colours": "some pixels have a colour that is not in the palette, so they are black",
    "wrong_checksum": "a checksum of the PNG file does not match its data, so pixels may be wrong",
} | RANGE_WARNINGS

_WITH_FRAMES = ("HEIF", "PNG", "WEBP")  # Pillow knows the number of frames from the header
FURTHER_PAGES = "further_pages"  # a key of `Image.info`, for a TIFF file that has other pages

Loaded = tuple[Image.Image, tuple[str, ...]]


def clause(word: str) -> str:
    """What a warning says: the clause of WARNINGS, with the figures of the image if it needs some."""
    return word.clause if isinstance(word, RangeWarning) else WARNINGS[word]


def load(image: Image.Image, data: bytes) -> Loaded:
    """Decodes the pixels of `image`, which Pillow opened from `data`, at the scale that `image.draft` chose.

    Returns the decoded image, which has no metadata, and the words of WARNINGS that apply. Raises what `image.load`
    raises.
    """
    if image.format in ("JPEG", "MPO"):
        return _load_jpeg(image, data)
    image.load()
    found = (*(_png_warnings(image, data) if image.format == "PNG" else ()), *_pages(image, data))
    return image, (*found, "unknown_colours") if _palette_is_short(image) else found


def _pages(image: Image.Image, data: bytes) -> tuple[str, ...]:
    """The warning about other images in the file, which may be the frames of an animation."""
    if image.format == "GIF":  # Pillow would decode every frame to count them
        several = has_second_frame(data)
    else:
        several = FURTHER_PAGES in image.info or (image.format in _WITH_FRAMES and getattr(image, "n_frames", 1) > 1)
    return ("further_pages",) if several else ()


def _palette_is_short(image: Image.Image) -> bool:
    """Whether a pixel's index is beyond the end of the palette."""
    if image.mode != "P":
        return False
    _, largest = image.getextrema()  # an array would be a copy of all pixels
    assert isinstance(largest, int | float)  # there is one channel
    return 3 * int(largest) >= len(image.getpalette() or [])


# --- JPEG (ITU-T T.81) ----------------------------------------------------------------------------------------------

# Any marker except those without a length: TEM, RST0 to RST7 and SOI. Stray bytes, and the entropy-coded data after the
# header of a scan, in which FF is followed by 00 or by a restart marker, are skipped.
_NEXT_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # frame headers
_PROGRESSIVE_SOF = {0xC2, 0xC6, 0xCA, 0xCE}
_SUPPORTED_SOF = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_DHT, _SOS, _EOI = 0xC4, 0xDA, 0xD9
_MAX_SEGMENTS = 10_000  # far more than a real file has, but a crafted file can have millions
_LONGEST_DHT = 8 * (17 + 256)  # bytes of all tables that a JPEG can have at a time
_ZEROS = bytes(16)
_METADATA = {*range(0xE0, 0xF0), 0xFE}  # APP0 to APP15 and comments
_SCRATCH_BYTES = 4 << 20  # holds most images at the scale of a model
_threads = threading.local()
_SMALLEST_SCALABLE = 8  # pixels; below that, two of libjpeg's scales can give the same size
_UNKNOWN_SUBSAMPLING = "tjDecompressHeader"  # the error for one that TurboJPEG has no name for
# Errors that say nothing about damage: memory that ran out, and parameters that libjpeg ignores.
_NOT_DAMAGE = ("could not create", "Insufficient memory", "Invalid SOS parameters for sequential JPEG")


def can_be_scaled(data: bytes, image: Image.Image) -> bool:
    """Whether `data`, which Pillow opened as `image`, is a JPEG that can be decoded at a part of its size.

    simplejpeg writes beyond the end of its buffer when it is asked to scale a lossless JPEG, which libjpeg cannot
    scale. For the same reason the size that libjpeg reads must be the one that Pillow has read and limited.
    """
    for marker, start, end in _segments(data):
        if marker in _SOF and end - start >= 9:
            height, width = struct.unpack_from(">HH", data, start + 5)
            sizes = [(-(-width // scale), -(-height // scale)) for scale in (1, 2, 4, 8)]
            return marker in _SUPPORTED_SOF and image.size in sizes
    return False


def _load_jpeg(image: Image.Image, data: bytes) -> Loaded:
    cut_between_scans = scans_are_missing(data)
    plain = image.mode in ("L", "RGB") and max(image.size) >= _SMALLEST_SCALABLE
    safe = can_be_scaled(data, image)
    if plain and safe and not cut_between_scans:
        decoded = _decoded_without_warning(data, image)
        if decoded is not None:
            return decoded, ("damaged_data",) if _has_impossible_zeros(data) else ()
    image.load()
    found = ("missing_scans",) if cut_between_scans else ()
    if safe and (_is_damaged(data, image) or _has_impossible_zeros(data)):
        return image, (*found, "damaged_data")
    return image, found


def _decoded_without_warning(data: bytes, image: Image.Image) -> Image.Image | None:
    """The same image as Pillow would decode. None if libjpeg has a warning or simplejpeg cannot read the file."""
    width, height = image.size
    colours = "gray" if image.mode == "L" else "rgb"
    try:
        pixels = simplejpeg.decode_jpeg(
            data, colours, min_height=height, min_width=width, buffer=_scratch(3 * width * height), strict=True
        )
    except (ValueError, RuntimeError):
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return Image.frombytes(image.mode, image.size, pixels)  # a copy, because the buffer is used again


def _scratch(size: int) -> bytearray | None:
    """This thread's buffer for decoded pixels, or None if it is smaller than `size` bytes.

    A new array for each image would be given back to the system each time, which costs 0.2 ms for 640 x 480 pixels.
    """
    if size > _SCRATCH_BYTES:
        return None
    if not hasattr(_threads, "scratch"):
        _threads.scratch = bytearray(_SCRATCH_BYTES)  # a page takes memory once it is written to
    buffer: bytearray = _threads.scratch
    return buffer


def _is_damaged(data: bytes, image: Image.Image) -> bool:
    """Whether libjpeg has a warning about the entropy-coded data of `image`, which has been decoded.

    The metadata is left out, so that the only warnings are about pixels. The smallest scale is enough, because every
    code is read at any scale.
    """
    try:
        simplejpeg.decode_jpeg(_without_metadata(data), "gray", min_height=1, min_width=1, strict=True)
    except (ValueError, RuntimeError) as error:
        if str(error).startswith(_UNKNOWN_SUBSAMPLING):
            return _ends_in_grey(image)
        return not str(error).startswith(_NOT_DAMAGE)
    return False


def _ends_in_grey(image: Image.Image) -> bool:
    """Whether the last pixel has the middle value, with which libjpeg fills blocks whose data is missing.

    This finds only a sequential JPEG that was cut. It is for the few files that simplejpeg cannot read.
    """
    width, height = image.size
    last = np.asarray(image.crop((width - 1, height - 1, width, height)))
    return bool(((last == 127) | (last == 128)).all())  # 127 is 128 inverted, as in the CMYK files of Adobe


def scans_are_missing(data: bytes) -> bool:
    """Whether a JPEG's scans leave out a component, or bits of a coefficient (section G.1.1.1), as in a cut file.

    libjpeg has no warning for that, since such a file shows a preview of the image.
    """
    missing_bits: dict[int, bytearray] = {}  # of each coefficient, by component
    progressive = False
    for marker, start, end in _segments(data):
        segment = data[start + 4 : end]
        if marker in _SOF:
            progressive = marker in _PROGRESSIVE_SOF
            missing_bits = {component: bytearray(b"\x10" * 64) for component in segment[6::3]}
        elif marker == _SOS and len(segment) >= 4:
            first, last, precision = segment[-3:] if progressive else (0, 63, 0)
            band = slice(first, min(last, 63) + 1)
            for component in segment[1:-3:2]:
                missing = missing_bits.setdefault(component, bytearray(64))
                missing[band] = bytes([precision & 15]) * len(missing[band])
            if not any(map(any, missing_bits.values())):
                return False
    return bool(missing_bits)


def _has_impossible_zeros(data: bytes) -> bool:
    """Whether a scan has 128 zero bits in a row, which would mean dozens of equal coefficients one after the other.

    Storage that loses a block of a file often fills it with zeros, and libjpeg decodes them. They are possible only if
    the code of zeros ends a block, as in large areas of one colour.
    """
    if data.find(_ZEROS, data.find(b"\xff\xda")) < 0:
        return False
    code_of_zeros: dict[int, int] = {}  # the run and size that it stands for, by AC table
    progressive = False
    for marker, start, end in _segments(data):
        segment = data[start + 4 : end]
        if marker in _SOF:
            progressive = marker in _PROGRESSIVE_SOF
        elif marker == _DHT and len(segment) <= _LONGEST_DHT:
            code_of_zeros |= _first_ac_codes(segment)
        elif marker == _SOS and len(segment) >= 4 and not (progressive and (segment[-3] == 0 or segment[-1] >> 4)):
            codes = {code_of_zeros.get(tables & 15, 0) for tables in segment[2:-3:2]}
            after = _NEXT_SEGMENT.search(data, end)
            has_zeros = data.find(_ZEROS, end, after.start() if after else len(data)) >= 0
            if has_zeros and any(code & 15 or code == 0xF0 for code in codes):
                return True
    return False


def _first_ac_codes(segment: bytes) -> dict[int, int]:
    """The run and size (section F.1.2.2) of the first code in each AC table of a DHT segment. Its bits are all zero."""
    codes = {}
    while len(segment) > 17:
        if segment[0] >> 4:
            codes[segment[0] & 15] = segment[17]
        segment = segment[17 + sum(segment[1:17]) :]
    return codes


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker of each segment of the first image in `data`, and where the segment starts and ends."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        found = _NEXT_SEGMENT.search(data, position)
        if found is None or found[1][0] == _EOI:
            return
        length = found.end()
        position = length + max(2, int.from_bytes(data[length : length + 2], "big"))
        yield found[1][0], found.start(), position


def _without_metadata(data: bytes) -> bytes:
    """A JPEG without the segments before its first scan that do not describe pixels, and without stray bytes."""
    kept: list[bytes | memoryview] = [data[:2]]
    scan = len(data)
    for marker, start, end in _segments(data):
        if marker == _SOS:
            scan = start
            break
        if marker not in _METADATA:
            kept.append(data[start:end])
    return b"".join([*kept, memoryview(data)[scan:]])


# --- PNG (W3C Recommendation, third edition) ------------------------------------------------------------------------

# The chunks that decide pixels and orientation. Damage to any other chunk does not change an answer.
_CHECKED_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# The first column and row of each interlaced pass, and the steps between its columns and rows (section 8).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 20  # bytes inflated, and bytes read, at a time


def _png_warnings(image: Image.Image, data: bytes) -> Iterator[str]:
    """The warnings for a PNG file whose pixels have been loaded."""
    name, wrong = b"", False
    for name, contents, crc in _chunks(data):
        wrong = wrong or (name in _CHECKED_CHUNKS and zlib.crc32(contents, zlib.crc32(name)) != crc)
    if _rows_may_be_missing(image) and not _inflates_to(data, _full_size(data)):
        yield "missing_rows"
    if name != b"IEND":
        yield "missing_end"
    if wrong:
        yield "wrong_checksum"


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """The name, contents and checksum of every complete chunk up to IEND."""
    view, position = memoryview(data), 8
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return
        yield name, view[position + 8 : end], int.from_bytes(view[end : end + 4], "big")
        if name == b"IEND":
            return
        position = end + 4


def _rows_may_be_missing(image: Image.Image) -> bool:
    """Whether the rows must be counted. A row that no data has filled is zero, and the last row is filled last."""
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get("interlace")) or not np.asarray(last_row).any()


def _inflates_to(data: bytes, size: int) -> bool:
    """Whether the IDAT chunks hold at least `size` bytes of filtered rows."""
    inflater = zlib.decompressobj()
    try:
        for rest in _pieces(contents for name, contents, _ in _chunks(data) if name == b"IDAT"):
            while rest and size > 0 and not inflater.eof:
                size -= len(inflater.decompress(rest, _PIECE))
                rest = memoryview(inflater.unconsumed_tail)
        return size <= 0 or size <= len(inflater.flush())
    except zlib.error:  # before the last row
        return False


def _pieces(contents: Iterator[memoryview]) -> Iterator[memoryview]:
    """`contents` in pieces, because `decompress` copies what it leaves unread."""
    for whole in contents:
        for start in range(0, len(whole), _PIECE):
            yield whole[start : start + _PIECE]


def _full_size(data: bytes) -> int:
    """The number of bytes of filtered rows that the header promises: a filter byte and the samples for each row."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    bits = depth * _CHANNELS[colour]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
