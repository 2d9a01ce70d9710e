"""What a file that cannot be decoded is called."""

import gzip
import io
import pickle
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from service.images import file_types, formats
from service.images.decode import ImageError, upright


@pytest.fixture(autouse=True)
def default_formats():
    before = formats.accepted()
    formats.accept(formats.DEFAULT)
    yield
    formats.accept(before)


def fault(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        upright(data)
    return str(caught.value)


def brand(*brands: bytes) -> bytes:
    box = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (4 + len(box)).to_bytes(4, "big") + box + b"\0\0\0\x08mdat" + bytes(64)


def tiff(*tags: int, more: bytes = b"") -> bytes:
    entries = b"".join(tag.to_bytes(2, "little") + b"\3\0\1\0\0\0\1\0\0\0" for tag in tags)
    return b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + entries + bytes(4) + more


def numpy_file() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros((4, 4), np.uint8))
    return out.getvalue()


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.jpg", b"x" * 100)
    return out.getvalue()


def image(format: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(out, format)
    return out.getvalue()


FILES = {
    "it is a HEIC image": brand(b"heic", b"mif1", b"heic"),
    "it is a HEIF image": brand(b"mif1", b"mif1", b"miaf"),
    "it is an AVIF image": brand(b"mif1", b"miaf", b"avif"),
    "it is a raw file of a camera (CR3)": brand(b"crx ", b"isom"),
    "it is a video (MP4)": brand(b"isom", b"iso2", b"avc1"),
    "it is a video (MOV)": brand(b"qt  "),
    "it is a video (WebM or Matroska)": b"\x1aE\xdf\xa3" + bytes(40),
    "it is a video (AVI)": b"RIFF\x40\0\0\0AVI LIST" + bytes(40),
    "it is a TIFF image": tiff(256, 257),
    "it is a raw file of a camera (DNG)": tiff(256, 50706),
    "it is a raw file of a camera (NEF)": tiff(256, 271, 330, more=b"NIKON CORPORATION"),
    "it is a raw file of a camera (ARW)": tiff(256, 271, 330, more=b"SONY"),
    "it is a raw file of a camera (CR2)": b"II*\0\x10\0\0\0CR\2\0" + bytes(40),
    "it is a JPEG XL image": b"\xff\x0a" + bytes(range(40)),
    "it is a JPEG 2000 image": image("JPEG2000"),
    "it is an icon (ICO)": image("ICO"),
    "it is a PCX image": image("PCX"),
    "it is a PNM image (PBM, PGM or PPM)": image("PPM"),
    "it is a PDF document": b"%PDF-1.7\n" + bytes(40),
    "it is an EPS or PostScript document": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "it is a PSD file of Photoshop": b"8BPS\0\1" + bytes(40),
    "it is a ZIP archive": archive(),
    "it is data compressed with gzip": gzip.compress(b"x" * 100),
    "it is a NumPy file (.npy)": numpy_file(),
    "it is a Python pickle": pickle.dumps(list(range(50)), protocol=4),
    "it is a DICOM file": bytes(128) + b"DICM" + bytes(40),
    "it is a Windows shortcut (.lnk)": b"L\0\0\0\1\x14\2\0" + bytes(80),
    "it is a file of zeros": bytes(5000),
    "it is only 1 byte long": b"\xff",
    "it is a PNG image that was transferred as text": b"\x89PNG\n\x1a\n" + bytes(40),
    "it is a JPEG image that was read as text": "\ufffd\ufffd\ufffd\ufffd\0\x10JFIF".encode() + bytes(30),
    "it is a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "it is a pointer of git-annex": b"/annex/objects/SHA256E-s1--ab.jpg\n",
    "it is an HTML page": b"\xef\xbb\xbf <!-- x -->\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "it is an SVG drawing": b"<?xml version='1.0'?>\n<!-- a --><!DOCTYPE svg>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "it is an XML document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "it is a JSON document": b'{"error": "not found"}',
    "it is base64 text": b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgK\r\n",
    "it is a data: URL": b"data:image/jpeg;base64,/9j/4AAQSkZJRg==",
    "it is a URL": b"https://example.org/image.jpg\n",
    "it is text": "Größe: unbekannt, bitte später noch einmal versuchen".encode(),
    "it is text in UTF-16": "hello, world".encode("utf-16"),
    "the BMP data is broken": image("BMP")[:40],
    "the JPEG data is broken": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "the PNG data is broken": image("PNG").replace(b"\0\0\0\x20\0\0\0\x20", b"\0\0\0\x21\0\0\0\x20", 1),
    "the WebP data is broken": image("WEBP")[:20],
    "the GIF data is broken": b"GIF89a\1",
    "it is not an image that can be read": bytes(range(128, 256)),
}


@pytest.mark.parametrize("start", FILES)
@pytest.mark.contract("3.11")
def test_a_file_is_called_what_it_is(start):
    text = fault(FILES[start])
    assert text.startswith(start)
    assert "JPEG" in text or "broken" in text


def test_no_text_takes_long_to_name():
    """Nested repetitions in a pattern would take ages for one of these."""
    began = time.process_time()
    for piece in (b"<!---->", b"<?xml?>", b"<!doctype x>", b"<!-- ", b"../", b"A" * 30 + b"=", b" ", b"<a", b"{", b"["):
        file_types.of(piece * 4000)
        file_types.of(piece * 4000 + b"<svg")
    assert time.process_time() - began < 5


def test_every_start_of_bytes_is_named_or_not_without_an_error():
    rng = np.random.default_rng(0)
    for size in range(1, 300):
        for data in (rng.bytes(size), *(each[:size] for each in FILES.values())):
            found = file_types.of(data)
            assert found is None or found.words


@pytest.mark.parametrize(
    "start",
    ["BMW makes cars", "BANANA, apple, cherry", "P1 is the first priority", "P7 comes last", "DDS is a middleware",
     "ID3 tags describe music", "BZh is how some files begin", "G" + "x" * 187 + "G"],
)  # fmt: skip
def test_a_text_that_begins_like_a_binary_file_is_called_text(start):
    with pytest.raises(ImageError) as caught:
        upright((start + ", and so on. " * 40).encode())
    assert "it is text, not an image" in str(caught.value)


def test_bytes_that_begin_with_bm_by_chance_are_not_called_a_broken_bmp():
    with pytest.raises(ImageError, match="it is not an image that can be read"):
        upright(b"BM" + bytes(range(128, 256)) * 4)
