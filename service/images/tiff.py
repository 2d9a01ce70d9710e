"""Reads the directory of a TIFF file's first page, checks it, and writes a file that has this directory alone.

Pillow and libtiff follow every pointer of a TIFF: the tags of all pages, EXIF and GPS directories, and values that may
point anywhere. A crafted file of a few kB can make them read gigabytes, or follow millions of directories. They only
get what decides the pixels: the tags of `_KEPT` from the first page, in a directory of its own behind the file's bytes.

Source: TIFF 6.0 (1992); BigTIFF as in libtiff.  A directory is a list of entries: tag, type, count, and the values or
their offset.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Literal, NamedTuple

from PIL import Image

MAX_ENTRIES = 1000  # of a directory; GeoTIFF and cameras have fewer than a hundred
MAX_PIECES = 50_000  # strips or tiles; strips of one row of the tallest common scans, one per channel, are 30,000
MAX_VALUES = MAX_PIECES
MAX_TABLE_BYTES = 2**16  # of JPEG tables
MAX_DIRECTORIES = 1000  # that are followed to count pages
MAX_REUSE = 2  # how often all strips together may cover the file; some writers store equal tiles once
SCANS_PER_PIECE = 4  # a strip in JPEG has a scan, or one per channel
SPARE_SCANS = 50
JPEG_SCAN = b"\xff\xda"
TILE_PIXELS = 2**20  # a tile may be larger than the image, but not by more than this

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_LONG, _UNSIGNED_32 = {16, 18}, 4
_INTEGERS = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _PLANAR = 256, 257, 258, 259, 277, 284
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_JPEG_TABLES, _OLD_JPEG_START, _OLD_JPEG_BYTES = 347, 513, 514
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE = 254, 255
_SHARED = {_JPEG_TABLES, 532}  # 532: ReferenceBlackWhite, rationals
_OTHER_THAN_INTEGERS = {_JPEG_TABLES, 529, 532}  # 529: YCbCrCoefficients, rationals
_KEPT = {
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, 262, 266, _STRIP_OFFSETS, 274, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES,
    _PLANAR, 292, 293, 317, 320, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, 332, 338, 339, _JPEG_TABLES,
    512, _OLD_JPEG_START, _OLD_JPEG_BYTES, 515, 519, 520, 521, 529, 530, 531, 532,
}  # fmt: skip
# No LZMA and no Zstandard, whose streams choose how much memory their decoder takes, and no codec that is rare.
_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946}
_COMPRESSION_NAMES = {34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP"}
_JPEGS = {6, 7}


class TiffError(ValueError):
    """The file cannot be decoded. `fault` and `remedy` are as in `decode.ImageError`."""

    def __init__(self, fault: str, remedy: str = "Save the image again and send it.") -> None:
        super().__init__(fault)
        self.fault = fault
        self.remedy = remedy


class _Layout(NamedTuple):
    """How a file writes its numbers.

    order   "<" or ">"
    number  the format of a directory's number of entries
    offset  the format of a position, and of the number of values
    """

    order: Literal["<", ">"]
    number: str
    offset: str

    def read(self, kind: str, data: bytes, at: int) -> int:
        if at + struct.calcsize(f"={kind}") > len(data):
            raise TiffError("the TIFF data is broken or cut short", "Send the whole file, or save it again.")
        return int(struct.unpack_from(f"{self.order}{kind}", data, at)[0])


class _Entry(NamedTuple):
    """A tag's values: the number of their type, how many they are, and where they are in the file."""

    type: int
    values: int
    at: int


class Pages(NamedTuple):
    """A file with one page, and whether the original has more than that."""

    first: bytes
    more: bool


def is_tiff(data: bytes) -> bool:
    return data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def first_page(data: bytes) -> Pages:
    """The file with its first page alone. `data` begins as `is_tiff` says. Raises TiffError."""
    order: Literal["<", ">"] = "<" if data.startswith(b"I") else ">"
    big = 43 in data[2:4]
    layout = _Layout(order, "Q", "Q") if big else _Layout(order, "H", "I")
    at = layout.read(layout.offset, data, 8 if big else 4)
    entries, following = _directory(data, at, layout)
    kept = {tag: entry for tag, entry in entries.items() if tag in _KEPT}
    _check(data, kept, layout)
    return Pages(_with_one_directory(data, kept, layout), _has_another_page(data, following, layout))


def _directory(data: bytes, at: int, layout: _Layout) -> tuple[dict[int, _Entry], int]:
    """The entries of the directory at `at`, the first of each tag, and the position of the next directory or 0."""
    number = layout.read(layout.number, data, at)
    if not 0 < number <= MAX_ENTRIES:
        raise TiffError(f"its TIFF directory has {number:,} entries; the limit is {MAX_ENTRIES:,}")
    at += struct.calcsize(f"={layout.number}")
    room = struct.calcsize(f"={layout.offset}")
    entries: dict[int, _Entry] = {}
    for _ in range(number):
        tag, kind = layout.read("H", data, at), layout.read("H", data, at + 2)
        count = layout.read(layout.offset, data, at + 4)
        place = at + 4 + room
        if count * _SIZES.get(kind, 1) > room:
            place = layout.read(layout.offset, data, place)
        entries.setdefault(tag, _Entry(kind, count, place))
        at += 4 + 2 * room
    return entries, layout.read(layout.offset, data, at) if at + room <= len(data) else 0


def _check(data: bytes, entries: dict[int, _Entry], layout: _Layout) -> None:
    """Raises TiffError if decoding could take far more than the size of the image suggests, or the file is cut."""
    for tag, entry in entries.items():
        size = entry.values * _SIZES.get(entry.type, 1)
        if entry.values > (MAX_TABLE_BYTES if tag in _SHARED else MAX_VALUES) or entry.type not in _SIZES:
            raise TiffError("its TIFF directory has more strips, tiles or values than any ordinary file")
        # Libraries would read bytes, text, fractions and negative numbers, which the following checks would not see.
        if not entry.values or (entry.type not in _INTEGERS and tag not in _OTHER_THAN_INTEGERS):
            raise TiffError("its TIFF directory has values of a wrong type")
        if entry.at + size > len(data):
            raise TiffError("the TIFF data is broken or cut short", "Send the whole file, or save it again.")

    def value(tag: int, default: int) -> int:
        return (_numbers(data, entries[tag], layout) or [default])[0] if tag in entries else default

    compression = value(_COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        name = _COMPRESSION_NAMES.get(compression, f"number {compression}")
        raise TiffError(f"its TIFF compression, {name}, is not supported", "Save it with LZW or Deflate.")
    width, height = value(_WIDTH, 0), value(_HEIGHT, 0)
    if width < 1 or height < 1:
        raise TiffError("the TIFF data is broken or cut short", "Send the whole file, or save it again.")
    if _BITS in entries and max(_numbers(data, entries[_BITS], layout), default=1) > 16:
        raise TiffError(
            "its TIFF samples have more than 16 bits, so the range of their values is not known",
            "Save it with 8 or 16 bits for each channel.",
        )
    if value(_TILE_WIDTH, 0) * value(_TILE_HEIGHT, 0) > width * height + TILE_PIXELS:
        raise TiffError("its tiles are far larger than the image")
    _check_pieces(data, entries, layout, compression in _JPEGS)


def _check_pieces(data: bytes, entries: dict[int, _Entry], layout: _Layout, jpeg: bool) -> None:
    """The same for the strips or tiles."""
    for starts, sizes in ((_STRIP_OFFSETS, _STRIP_BYTES), (_TILE_OFFSETS, _TILE_BYTES)):
        if starts not in entries:
            continue
        offsets = _numbers(data, entries[starts], layout)
        lengths = _numbers(data, entries[sizes], layout) if sizes in entries else []
        whole = all(start + length <= len(data) for start, length in zip(offsets, lengths, strict=False))
        if not whole or any(start > len(data) for start in offsets):
            raise TiffError("the TIFF data is broken or cut short", "Send the whole file, or save it again.")
        if sum(lengths) > MAX_REUSE * len(data):
            raise TiffError("its strips or tiles overlap")
        if jpeg and data.count(JPEG_SCAN) > SCANS_PER_PIECE * len(offsets) + SPARE_SCANS:
            raise TiffError("its JPEG strips have more scans than any ordinary file")


def _numbers(data: bytes, entry: _Entry, layout: _Layout) -> list[int]:
    """The values of an entry of whole numbers without a sign; of any other type, an empty list."""
    if entry.type not in _INTEGERS:
        return []
    return list(struct.unpack_from(f"{layout.order}{entry.values}{_INTEGERS[entry.type]}", data, entry.at))


def _with_one_directory(data: bytes, entries: dict[int, _Entry], layout: _Layout) -> bytes:
    """`data` with a directory of these entries alone at its end, in the order of their tags.

    The result is never a BigTIFF, of which Pillow reads only one byte order. Values stay where they are, except those
    of 64 bits, which are written again with 32.
    """
    order = layout.order
    start = len(data) + len(data) % 2  # a directory begins at an even position
    behind = start + 2 + 12 * len(entries) + 4
    if behind + 4 * MAX_PIECES > 2**32:
        raise TiffError("it is larger than 4 GB")
    directory, values = [struct.pack(f"{order}H", len(entries))], b""
    for tag, entry in sorted(entries.items()):
        kind, place, packed = entry.type, entry.at, data[entry.at : entry.at + entry.values * _SIZES[entry.type]]
        if kind in _LONG:
            kind, place = _UNSIGNED_32, behind + len(values)
            packed = struct.pack(f"{order}{entry.values}I", *(min(n, 2**32 - 1) for n in _numbers(data, entry, layout)))
            values += packed if len(packed) > 4 else b""
        inside = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", place)
        directory.append(struct.pack(f"{order}HHI", tag, kind, entry.values) + inside)
    head = data[:2] + struct.pack(f"{order}HI", 42, start)
    return b"".join([head, memoryview(data)[8:], bytes(start - len(data)), *directory, bytes(4), values])


def _has_another_page(data: bytes, at: int, layout: _Layout) -> bool:
    """Whether a following directory is a page of its own, not a smaller copy of one or its mask."""
    seen: set[int] = set()
    while at and at not in seen and len(seen) < MAX_DIRECTORIES:
        seen.add(at)
        try:
            entries, following = _directory(data, at, layout)
            kinds = {tag: _first(data, entries, tag, layout) for tag in (_NEW_SUBFILE_TYPE, _SUBFILE_TYPE)}
        except (TiffError, struct.error):  # the first page does not depend on it
            return False
        if not kinds[_NEW_SUBFILE_TYPE] & 0b101 and kinds[_SUBFILE_TYPE] != 2:  # bit 0, 2: smaller; bit 2: a mask
            return True
        at = following
    return False


def _first(data: bytes, entries: dict[int, _Entry], tag: int, layout: _Layout) -> int:
    """The only value of a tag, 0 if it has none or several."""
    if tag not in entries or entries[tag].values != 1:
        return 0
    return (_numbers(data, entries[tag], layout) or [0])[0]


def silence_libtiff() -> None:
    """Stops libtiff from printing its messages about broken files, which any client could cause, to standard error.

    Pillow raises an error in each of these cases. Where libtiff is a part of Pillow's module (Windows), it cannot be
    reached, and prints.
    """
    try:
        library = ctypes.CDLL(Image.core.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
    except (AttributeError, OSError):
        pass
