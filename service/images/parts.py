"""Counts the parts of a file beside its pixels: a JPEG's segments, a PNG's chunks, a GIF's blocks, EXIF entries.

Pillow handles each of them in Python, some in time that grows with the square of their number. A crafted file of a few
megabytes can have a million, which take many seconds before the size of the image is even known. Ordinary files have
fewer than a hundred; the largest profiles and panoramas have some hundreds.
"""

from __future__ import annotations

from typing import Literal

MAX_PARTS = 10_000
BYTES_PER_CHUNK = 1024  # a PNG may have further chunks in proportion to its size; 8192 bytes each are usual
LENGTHLESS = {0x00, 0x01, *range(0xD0, 0xDA)}  # JPEG markers without a length


def has_too_many(data: bytes) -> bool:
    """Whether the header of the file has more parts than any ordinary file."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data) > MAX_PARTS
    if data.startswith(b"\x89PNG"):
        return _png(data) > MAX_PARTS + len(data) // BYTES_PER_CHUNK
    if data.startswith(b"GIF"):
        return _gif(data) > MAX_PARTS
    if data.startswith(b"RIFF"):
        return _webp(data) > MAX_PARTS
    return False


def _jpeg(data: bytes) -> int:
    """Segments, padding and stray bytes before the first scan, counted up to MAX_PARTS + 1."""
    at, parts, exif = 2, 0, b""
    while at + 3 < len(data) and parts <= MAX_PARTS:
        marker = data[at + 1]
        if data[at] != 0xFF:  # a stray byte
            at += 1
        elif marker == 0xDA:
            break
        elif marker == 0xFF:  # padding
            at += 1
        elif marker in LENGTHLESS:
            at += 2
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if marker == 0xE1 and data.startswith(b"Exif\0\0", at + 4):
                exif += data[at + 10 : end]  # Pillow joins several segments
            at = end
        parts += 1
    return parts + _exif_entries(exif)


def _png(data: bytes) -> int:
    """Chunks and EXIF entries, counted up to the limit."""
    at, parts, most = 8, 0, MAX_PARTS + len(data) // BYTES_PER_CHUNK
    while at + 8 <= len(data) and parts <= most:
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data.startswith(b"IEND", at + 4):
            break  # Pillow ignores what follows
        if data.startswith(b"eXIf", at + 4):
            parts += _exif_entries(data[at + 8 : end])
        at = end
        parts += 1
    return parts


def png_bytes_beside_pixels(data: bytes) -> int:
    """The bytes in a PNG's chunks that hold no pixels, before or after those that do."""
    at, found = 8, 0
    while at + 8 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if name != b"IDAT":
            found += min(length, len(data) - at - 8)
        if name == b"IEND":
            break
        at += 12 + length
    return found


def _webp(data: bytes) -> int:
    """Chunks and EXIF entries, counted up to MAX_PARTS + 1."""
    at, parts = 12, 0
    file_end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= file_end and parts <= MAX_PARTS:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data.startswith(b"EXIF", at):
            parts += _exif_entries(data[at + 8 : at + 8 + size].removeprefix(b"Exif\0\0"))
        at += 8 + size + size % 2
        parts += 1
    return parts


def _exif_entries(exif: bytes) -> int:
    """The entries of the first directory, which is the only one that Pillow reads for the orientation."""
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    first = int.from_bytes(exif[4:8], order)
    return int.from_bytes(exif[first : first + 2], order)


def _gif(data: bytes) -> int:
    """Blocks of extensions, and stray bytes, before the first image, counted up to MAX_PARTS + 1."""
    at, parts = 13, 0
    if len(data) > at and data[10] & 0x80:
        at += 3 << (data[10] & 7) + 1  # the palette
    while at + 1 < len(data) and parts <= MAX_PARTS and data[at] != 0x2C:  # an image begins with a comma
        if data[at] != 0x21:  # an extension begins with an exclamation mark
            at += 1
        else:
            at += 2
            while at < len(data) and data[at] and parts <= MAX_PARTS:
                at += 1 + data[at]
                parts += 1
            at += 1
        parts += 1
    return parts


# --- further frames --------------------------------------------------------------------------------------------------

_SPARE_BLOCKS = 1000
_BYTES_PER_BLOCK = 128  # encoders fill a block of pixels with 255 bytes; a crafted file may have a million of 1 byte


def has_second_frame(gif: bytes) -> bool:
    """Whether a GIF has another image behind its first, by the blocks of the file alone.

    A file with far more blocks than its size suggests is not followed to its end, and counts as one image.
    """
    at, frames, left = 13 + _palette(gif[10:11]), 0, _SPARE_BLOCKS + len(gif) // _BYTES_PER_BLOCK
    while at + 1 < len(gif) and left > 0:
        if gif[at] == 0x2C:
            frames += 1
            if frames > 1:
                return True
            at += 11 + _palette(gif[at + 9 : at + 10])  # its place, its palette and one byte about its codes
        elif gif[at] == 0x21:
            at += 2
        elif gif[at] == 0x3B:  # the end of the file
            break
        else:  # a stray byte
            at += 1
            left -= 1
            continue
        while at < len(gif) and gif[at] and left > 0:
            at += 1 + gif[at]
            left -= 1
        at += 1
        left -= 1
    return False


def _palette(flags: bytes) -> int:
    """The bytes of a GIF's palette, by the flags of the screen or of an image."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
