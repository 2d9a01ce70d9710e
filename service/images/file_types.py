"""Names what a file is by its first bytes, for the error about a file that cannot be decoded.

Clients send files under any name and media type, so only the bytes count. This runs only after decoding has failed.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

START = 4096  # bytes that are looked at
_TEXT_START = 512
SHORTEST = 16  # bytes; no image is shorter


class FileType(NamedTuple):
    """What a file is.

    words   with an article, as in "a PDF document"
    format  the name in `formats.FORMATS`, if this project can read it
    """

    words: str
    format: str = ""


def of(data: bytes) -> FileType | None:
    """The type of the file, or None if its bytes fit none that is known here."""
    head = data[:START]
    if len(data) > 1 and not any(head) and data.count(0) == len(data):
        return FileType("a file of zeros: the transfer or the disk has lost its contents")
    for known, test in _BINARY:
        if test(head):
            return known
    if head[4:8] == b"ftyp":
        return _iso_media(head)
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _tiff(data)
    if text := _text(head):
        return text
    return FileType(f"only {len(data)} byte{'s' * (len(data) > 1)} long") if len(data) < SHORTEST else None


def _starts(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(prefixes)


def _at(place: int, *words: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(words, place)


def _riff(kind: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(b"RIFF") and head[8:12] == kind


# An icon has the numbers 0 and 1, a cursor 0 and 2; then a count, which is small.
def _icon(kind: int) -> Callable[[bytes], bool]:
    return lambda head: head[:4] == bytes((0, 0, kind, 0)) and len(head) > 21 and 0 < head[4] < 64 and head[5] == 0


def _damaged_png(head: bytes) -> bool:
    """Whether line ends or bytes beyond ASCII of a PNG's signature were converted, as FTP or an editor does."""
    return head.startswith((b"\x89PNG\n", b"\x89PNG\r\r", b"\xef\xbf\xbdPNG", b"\xc2\x89PNG", b"\tPNG\r", b"?PNG\r"))


def _bmp(head: bytes) -> bool:
    """Whether `BM` is followed by a header of a size that exists, because a text may begin with these letters too."""
    return head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes, from OS/2 1 to version 5 of Windows
_PNM = rb"P[1-6fF]\s+[#\d]|P7\s+(#|WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE)"
_RAW = "a raw file of a camera"
_VIDEO = "a video"
_BINARY: tuple[tuple[FileType, Callable[[bytes], bool]], ...] = (
    (FileType("a JPEG-LS image"), _starts(b"\xff\xd8\xff\xf7")),
    (FileType("a JPEG image", "JPEG"), _starts(b"\xff\xd8\xff")),
    (FileType("a JPEG image that was read as text, which destroyed its bytes"), _starts(b"\xef\xbf\xbd" * 3)),
    (FileType("a PNG image that was transferred as text, which changed its bytes"), _damaged_png),
    (FileType("a PNG image", "PNG"), _starts(b"\x89PNG")),
    (FileType("a WebP image", "WEBP"), _riff(b"WEBP")),
    (FileType("a GIF image", "GIF"), _starts(b"GIF87a", b"GIF89a")),
    (FileType("a JPEG XL image"), _starts(b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    (FileType("a JPEG 2000 image"), _starts(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
    (FileType("a JPEG XR image"), _starts(b"II\xbc")),
    (FileType(f"{_RAW} (CR2)"), lambda head: head.startswith(b"II*\0") and head[8:10] == b"CR"),
    (FileType(f"{_RAW} (RAF)"), _starts(b"FUJIFILMCCD-RAW")),
    (FileType(f"{_RAW} (ORF)"), _starts(b"IIRO", b"IIRS", b"MMOR")),
    (FileType(f"{_RAW} (RW2)"), _starts(b"IIU\0")),
    (FileType(f"{_RAW} (X3F)"), _starts(b"FOVb")),
    (FileType(f"{_RAW} (MRW)"), _starts(b"\0MRM")),
    (FileType(f"{_RAW} (CRW)"), _at(6, b"HEAPCCDR")),
    (FileType("a PSD file of Photoshop"), _starts(b"8BPS")),
    (FileType("an XCF file of GIMP"), _starts(b"gimp xcf")),
    (FileType("a PDF document"), lambda head: b"%PDF-" in head[:1024]),
    (FileType("an EPS or PostScript document"), _starts(b"%!PS", b"\xc5\xd0\xd3\xc6")),
    (FileType("an icon (ICO)"), _icon(1)),
    (FileType("a cursor (CUR)"), _icon(2)),
    (FileType("an icon (ICNS)"), _starts(b"icns")),
    (FileType("an OpenEXR image"), _starts(b"v/1\x01")),
    (FileType("a Radiance HDR image"), _starts(b"#?RADIANCE", b"#?RGBE")),
    (FileType("a DDS texture"), _starts(b"DDS |\0")),
    (FileType("a KTX texture"), _starts(b"\xabKTX ")),
    (FileType("a QOI image"), _starts(b"qoif")),
    (FileType("a FLIF image"), _starts(b"FLIF")),
    (FileType("a BPG image"), _starts(b"BPG\xfb")),
    (FileType("a DjVu document"), _starts(b"AT&TFORM")),
    (FileType("a WMF or EMF drawing"), lambda head: head.startswith(b"\xd7\xcd\xc6\x9a") or head[40:44] == b" EMF"),
    (FileType("a PCX image"), lambda head: len(head) >= 128 and head[0] == 10 and head[1] <= 5 and head[2] == 1),
    (FileType("an SGI image"), _starts(b"\x01\xda\0\x01", b"\x01\xda\x01\x01")),
    (FileType("a Sun raster image"), _starts(b"\x59\xa6\x6a\x95")),
    (FileType("a PNM image (PBM, PGM or PPM)"), lambda head: bool(re.match(_PNM, head))),
    (FileType("a FITS image"), _starts(b"SIMPLE  =")),
    (FileType("a DICOM file"), _at(128, b"DICM")),
    (FileType("a NIfTI file"), _at(344, b"n+1\0", b"ni1\0")),
    (FileType("an HDF5 file"), _starts(b"\x89HDF\r\n\x1a\n")),
    (FileType("a NumPy file (.npy)"), _starts(b"\x93NUMPY")),
    (FileType("a Python pickle"), lambda head: head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")),
    (FileType(f"{_VIDEO} (WebM or Matroska)"), _starts(b"\x1aE\xdf\xa3")),
    (FileType(f"{_VIDEO} (AVI)"), _riff(b"AVI ")),
    (FileType("a sound file (WAV)"), _riff(b"WAVE")),
    (FileType(f"{_VIDEO} (FLV)"), _starts(b"FLV\1")),
    (FileType(f"{_VIDEO} (MPEG)"), _starts(b"\0\0\1\xba", b"\0\0\1\xb3")),
    (FileType(f"{_VIDEO} (MPEG transport stream)"), lambda head: head[::188][:3] == b"GGG"),
    (FileType(f"{_VIDEO} (WMV)"), _starts(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")),
    (FileType(f"{_VIDEO} (MOV)"), _at(4, b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),
    (FileType("a sound file (MP3)"), _starts(b"ID3\2", b"ID3\3", b"ID3\4")),
    (FileType("a sound file (FLAC or Ogg)"), _starts(b"fLaC", b"OggS")),
    (FileType("a ZIP archive, or a document that is one"), _starts(b"PK\3\4", b"PK\5\6", b"PK\7\x08")),
    (FileType("data compressed with gzip"), _starts(b"\x1f\x8b")),
    (FileType("data compressed with Zstandard"), _starts(b"\x28\xb5\x2f\xfd")),
    (FileType("data compressed with bzip2"), lambda head: bool(re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", head))),
    (FileType("data compressed with xz"), _starts(b"\xfd7zXZ\0")),
    (FileType("a 7-Zip archive"), _starts(b"7z\xbc\xaf\x27\x1c")),
    (FileType("a RAR archive"), _starts(b"Rar!\x1a\7")),
    (FileType("a tar archive"), _at(257, b"ustar")),
    (FileType("an SQLite database"), _starts(b"SQLite format 3\0")),
    (FileType("an ONNX model or another protocol buffer"), lambda head: bool(re.match(rb"\x08[\x03-\x0f]\x12.", head))),
    (FileType("a program (ELF)"), _starts(b"\x7fELF")),
    (FileType("a Windows shortcut (.lnk)"), _starts(b"L\0\0\0\1\x14\2\0")),
    (FileType("an old Office document or a thumbnail database"), _starts(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")),
    (FileType("a Mac resource file (its name begins with ._), not the image"), _starts(b"\0\5\x16\7", b"\0\5\x16\0")),
    (FileType("a program for Windows"), lambda head: head.startswith(b"MZ") and b"This program" in head[:512]),
    (FileType("a BMP image", "BMP"), _bmp),
    (FileType("a BMP image of OS/2 (an array of bitmaps)"), lambda head: _at(0, b"BA")(head) and _at(14, b"BM")(head)),
)  # fmt: skip

_BRANDS = {
    b"avif": FileType("an AVIF image", "AVIF"),
    b"avis": FileType("an AVIF animation"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"heif"), FileType("a HEIC image", "HEIF")),
    **dict.fromkeys((b"hevc", b"hevx", b"hevm", b"hevs"), FileType("a HEIC sequence", "HEIF")),
    b"jxl ": FileType("a JPEG XL image"),
    b"crx ": FileType(f"{_RAW} (CR3)"),
    b"qt  ": FileType(f"{_VIDEO} (MOV)"),
    b"M4A ": FileType("a sound file (M4A)"),
}


def _iso_media(head: bytes) -> FileType:
    """A file of ISO base media boxes, by its brands: the main one, then those that it is compatible with."""
    end = min(int.from_bytes(head[:4], "big"), 256)
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    for brand in brands:
        if brand in _BRANDS:
            return _BRANDS[brand]
    if brands[0] in (b"mif1", b"msf1"):
        return FileType("a HEIF image", "HEIF")
    return FileType(f"{_VIDEO} (MP4)")


def _tiff(data: bytes) -> FileType:
    """A TIFF image, or a camera's raw file, which begins in the same way."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    if data[2:4] in (b"*\0", b"\0*"):  # not BigTIFF, which no camera writes
        start = int.from_bytes(data[4:8], order)
        number = int.from_bytes(data[start : start + 2], order)
        entries = data[start + 2 : start + 2 + 12 * number]
        tags = {int.from_bytes(entries[at : at + 2], order) for at in range(0, len(entries), 12)}
        if 50706 in tags:  # DNGVersion
            return FileType(f"{_RAW} (DNG)")
        if {271, 330} <= tags:  # a camera's name, and the raw data in a directory of its own
            for maker, name in ((b"NIKON", "NEF"), (b"SONY", "ARW"), (b"PENTAX", "PEF"), (b"SAMSUNG", "SRW")):
                if maker in data[:START].upper():
                    return FileType(f"{_RAW} ({name})")
    return FileType("a TIFF image", "TIFF")


_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")
# Comments, a declaration and a document type before the first element. Each is matched in one way only, so that a file
# full of them takes no longer.
_PROLOGUE = rb"(?>(?><\?xml.*?\?>|<!--.*?-->|<!doctype [^>]*>)\s*)*+"
_TEXTS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), FileType(words))
    for pattern, words in (
        (
            rb"version https://(git-lfs|hawser)",
            "a pointer of Git LFS, not the image itself; `git lfs pull` gets the image",
        ),
        (rb"/?annex/objects|(\.\./)*\.git/annex/", "a pointer of git-annex, not the image itself"),
        (rb"data:[^,]{0,200},", 'a data: URL; send it as JSON, {"image": "data:…"}, or decode it'),
        (_PROLOGUE + rb"<(\w+:)?svg\b", "an SVG drawing"),
        (rb"<!doctype html|" + _PROLOGUE + rb"<(html|head|body|title|h1)\b", "an HTML page, perhaps an error page"),
        (_PROLOGUE + rb"<[a-z?!]", "an XML document, perhaps an error"),
        (rb"\[(InternetShortcut|\{[0-9a-f-]{36}\})", "a Windows shortcut (.url)"),
        (rb"\{|\[\s*[\[{\"\d-]", "a JSON document: an error, or a body without Content-Type: application/json"),
        (rb"--[^\r\n]{1,70}\r?\ncontent-disposition:", "a form without its Content-Type, multipart/form-data"),
        (rb"(https?|ftp|s3|gs|file)://\S+\s*\Z", "a URL; download the image and send its bytes"),
        (rb"HTTP/1\.[01] \d", "an HTTP response with its head; send its body alone"),
        (rb"/\* XPM \*/|#define \w+_width", "an XPM or XBM image"),
    )
)


def _text(head: bytes) -> FileType | None:
    """A kind of text, or None if the bytes are not text."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return FileType("text in UTF-16, not an image")
    for pattern, known in _TEXTS:
        if pattern.match(start):
            return known
    sample = start[:_TEXT_START]
    joined = b"".join(sample.split())
    if _BASE64.fullmatch(joined):
        return FileType('base64 text; decode it, or send it as JSON, {"image": "<base64>"}')
    if sample and not re.search(rb"[\x00-\x08\x0e-\x1f\x7f]", sample) and len(sample) > 4:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(sample)  # whose last character may be cut
        except UnicodeDecodeError:
            return None
        return FileType("text, not an image")
    return None
