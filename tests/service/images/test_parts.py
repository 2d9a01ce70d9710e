"""Files whose header has so many parts that Pillow would need many seconds for it."""

import struct
import zlib

import pytest
from PIL import Image

from service.images.decode import NotAnImageError, decode
from service.images.fit import Geometry
from service.images.parts import MAX_PARTS, has_too_many

GEOMETRY = Geometry(((64, 96), (96, 64)), 64, 96)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_parts(encode, format: str, part: bytes, number: int) -> bytes:
    """A file of this format with `number` times `part` before its pixels."""
    data = encode(Image.new("P" if format == "GIF" else "RGB", (60, 40)), format)
    at = {"JPEG": 2, "PNG": data.find(b"IDAT") - 4, "GIF": data.find(b"\x2c", 13)}[format]
    return data[:at] + part * number + data[at:]


PARTS = [
    ("JPEG", b"\xff\xfe\0\2"),  # an empty comment
    ("JPEG", b"\xff\xe1\0\x08Exif\0\0"),
    ("JPEG", b"\xff"),  # padding
    ("JPEG", b"\xff\xfe\0\2\0"),  # a comment and a stray byte
    ("JPEG", b"\xff\x01"),  # a marker without a length
    ("PNG", chunk(b"prVt")),
    ("PNG", chunk(b"IDAT")),
    ("PNG", chunk(b"tEXt", b"a\0b")),
    ("GIF", b"\x21\xfe\x01c\0"),  # a comment of one block
    ("GIF", b"\x21\xff\x01c\0"),
]


@pytest.mark.parametrize(("format", "part"), PARTS)
def test_a_header_with_very_many_parts_is_refused(encode, format, part):
    with pytest.raises(NotAnImageError, match="more parts"):
        decode(with_parts(encode, format, part, 2 * MAX_PARTS), GEOMETRY)


def test_a_gif_comment_of_very_many_blocks_is_refused(encode):
    with pytest.raises(NotAnImageError, match="more parts"):
        decode(with_parts(encode, "GIF", b"\x21\xfe" + 2 * MAX_PARTS * b"\x02cc" + b"\0", 1), GEOMETRY)


@pytest.mark.parametrize(("format", "part"), [each for each in PARTS if each[1] != b"\xff\x01"])
def test_some_hundred_parts_are_accepted(encode, format, part):
    data = with_parts(encode, format, part, 300)
    assert decode(data, GEOMETRY).width == 60


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_data_with_very_many_entries_is_refused(encode, format, order):
    def with_entries(number: int) -> bytes:
        entries = b"".join(struct.pack(order + "HHII", 0x9000 + n % 99, 4, 1, 0) for n in range(number))
        head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, number)
        exif = head + entries
        image = Image.new("RGB", (60, 40))
        if format != "JPEG":
            return encode(image, format, exif=exif)
        data = encode(image, format)  # a segment has at most 65535 bytes, but Pillow joins several
        pieces = [exif[start : start + 60_000] for start in range(0, len(exif), 60_000)]
        segments = [b"\xff\xe1" + struct.pack(">H", len(each) + 8) + b"Exif\0\0" + each for each in pieces]
        return data[:2] + b"".join(segments) + data[2:]

    assert decode(with_entries(300), GEOMETRY).width == 60
    with pytest.raises(NotAnImageError, match="more parts"):
        decode(with_entries(2 * MAX_PARTS), GEOMETRY)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_file_cut_anywhere_has_a_countable_number_of_parts(encode, format):
    data = encode(Image.effect_noise((60, 40), 50), format)
    assert not any(has_too_many(data[:end]) for end in range(len(data)))
