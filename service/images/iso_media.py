"""Checks the items of an AVIF or HEIF file against the size that its header declares, before it is decoded.

A file declares the size of an image, and holds frames of AV1 or HEVC that have sizes of their own. libheif compares the
two before it decodes. libavif decodes first, so a file of a kB that declares 64 x 64 pixels can make it take the memory
for 16,384 x 16,384. Items may also overlap, so that one file is read many times.

Source: ISO/IEC 14496-12 (boxes, items), the AV1 specification 5.3 to 5.5 (units of a frame, the sequence header).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MAX_BOXES = 1000  # of one level; files of cameras have a dozen
MAX_ITEMS = 1000  # as libheif allows; a photograph of 48 megapixels has 200 tiles
MAX_REUSE = 2  # how often all items together may cover the file
MAX_EXTENTS = 10_000  # of all items together; libheif allows 32 for each
MAX_UNITS = 10_000  # of all items together; an image has about three, one with many tiles some hundreds
SPARE_PIXELS = 2**19  # of thumbnails, and of tiles beyond the edge of the image
PARTS = 3  # colours, transparency, and a second layer or a gain map, each of the size of the image

_SEQUENCE_HEADER = 1
_NUMBER_BYTES = (0, 4, 8)


class IsoMediaError(ValueError):
    """The file cannot be decoded, or not safely. `fault`: a clause about the upload."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault


class _Box(NamedTuple):
    """A box: its type, and where its contents start and end."""

    type: bytes
    start: int
    end: int


class _Bits:
    """Reads numbers of any number of bits from bytes; beyond the end it reads zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, number: int) -> int:
        start, self._at = self._at, self._at + number
        if self._at > 8 * len(self._data):
            return 0
        end = -(-self._at // 8)
        return int.from_bytes(self._data[start // 8 : end], "big") >> 8 * end - self._at & (1 << number) - 1


def is_animation(data: bytes) -> bool:
    """Whether libavif would decode the frames of a video track instead of an image.

    With the main brand avif it never does, with avis it always does, and with any other it does if there is a track.
    """
    brand = data[8:12]
    return brand == b"avis" or (brand != b"avif" and _child(data, _whole(data), b"moov") is not None)


def check_items(data: bytes) -> None:
    """Raises IsoMediaError if the items of the file are too many, or overlap so much that reading them takes long."""
    items = _items(data)
    if sum(end - start for extents in items.values() for start, end in extents) > MAX_REUSE * len(data):
        raise IsoMediaError("its items overlap")


def check_av1_frames(data: bytes, width: int, height: int) -> None:
    """Raises IsoMediaError if the AV1 frames of an AVIF image of this size are much larger than it."""
    total = units = 0
    for extents in _items(data).values():
        largest = 0
        for pixels in _unit_pixels(b"".join(data[start:end] for start, end in extents)):
            units += 1
            if units > MAX_UNITS:  # a unit that is not read could announce a larger frame
                raise IsoMediaError("its AV1 frames have more parts than any ordinary file")
            largest = max(largest, pixels)
        total += largest
    if not total:
        raise IsoMediaError("it has no AV1 frame in a place where one is expected")
    if total > PARTS * width * height + SPARE_PIXELS:
        raise IsoMediaError("its AV1 frames are far larger than the size that its header declares")


def _boxes(data: bytes, start: int, end: int) -> Iterator[_Box]:
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        size, head = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        last = start + size if size else end
        if size and size < head:
            return
        yield _Box(data[start + 4 : start + 8], start + head, min(last, end))
        start = last
    raise IsoMediaError("it has more boxes than any ordinary file")


def _whole(data: bytes) -> _Box:
    return _Box(b"", 0, len(data))


def _child(data: bytes, box: _Box, kind: bytes, skipped: int = 0) -> _Box | None:
    return next((each for each in _boxes(data, box.start + skipped, box.end) if each.type == kind), None)


def _items(data: bytes) -> dict[int, list[tuple[int, int]]]:
    """The extents of every item, as positions in the file. An item within the box idat is not in a place of its own."""
    meta = _child(data, _whole(data), b"meta")
    location = meta and _child(data, meta, b"iloc", 4)
    if not meta or not location:
        return {}
    store = _child(data, meta, b"idat", 4)
    reader = _Bits(data[location.start : location.end])
    version, _ = reader.read(8), reader.read(24)
    offset_bytes, length_bytes, base_bytes, index_bytes = (reader.read(4) for _ in range(4))
    count = reader.read(32 if version == 2 else 16)
    if count > MAX_ITEMS or location.end - location.start > 64 * MAX_ITEMS:
        raise IsoMediaError(f"it has more than {MAX_ITEMS:,} items")
    items: dict[int, list[tuple[int, int]]] = {}
    left = MAX_EXTENTS
    for _ in range(count):
        item = reader.read(32 if version == 2 else 16)
        method = reader.read(16) & 15 if version else 0
        reader.read(16)  # the file that holds the item
        base = reader.read(8 * base_bytes)
        if method == 1 and store:
            base += store.start
        extents = reader.read(16)
        left -= extents
        if left < 0:
            raise IsoMediaError("its items are in more pieces than those of any ordinary file")
        for _ in range(extents):
            if version and index_bytes:
                reader.read(8 * index_bytes)
            start = base + reader.read(8 * offset_bytes)
            length = reader.read(8 * length_bytes) or len(data)
            items.setdefault(item, []).append((min(start, len(data)), min(start + length, len(data))))
    return items


def _unit_pixels(frame: bytes) -> Iterator[int]:
    """For each unit of an item in AV1 the pixels of the largest frame that it announces, 0 if it announces none.

    Two bits of a unit's head must be zero. They are not looked at, because decoders do not look at them either.
    """
    at = 0
    while at < len(frame):
        head = frame[at]
        at += 2 if head & 4 else 1  # bit 2: an extension follows
        if head & 2:  # a size follows, seven bits a byte, the lowest first
            size = shift = 0
            while at < len(frame) and shift < 56:
                size |= (frame[at] & 127) << shift
                shift += 7
                at += 1
                if not frame[at - 1] & 128:
                    break
        else:
            size = len(frame) - at
        is_sequence_header = head >> 3 & 15 == _SEQUENCE_HEADER
        yield _announced_pixels(_Bits(frame[at : at + min(size, 64)])) if is_sequence_header else 0
        at += size


def _announced_pixels(bits: _Bits) -> int:
    """Width times height of a sequence header (section 5.5.1). Only still pictures and plain videos are followed."""
    bits.read(3 + 1)  # seq_profile, still_picture
    if bits.read(1):  # reduced_still_picture_header
        bits.read(5)
    else:
        if bits.read(1):  # timing_info_present_flag; an image has no timing
            return 2**62
        bits.read(1)  # initial_display_delay_present_flag
        for _ in range(bits.read(5) + 1):  # operating points
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)
