"""Formats beside those that are always on: which are read, and that their files are turned once and limited."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from service.http.answers import image_warnings
from service.images import formats, iso_media, tiff
from service.images.decode import ORIENTATION, TRANSPOSE, DamagedImageError, ImageError, damage, decode, upright
from service.images.fit import Geometry

GEOMETRY = Geometry(((320, 448), (448, 320), (384, 384)), min_size=320, max_size=448)
UNDO = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # 6 and 8 turn by 90 degrees in opposite directions
TIFF_COMPRESSIONS = ["raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg"]


@pytest.fixture(autouse=True)
def all_formats():
    before = formats.accepted()
    formats.accept_all()
    yield
    formats.accept(before)


def photo(width: int = 400, height: int = 320, mode: str = "RGB") -> Image.Image:
    corners = np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def fault(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, GEOMETRY)
    return str(caught.value)


# --- the setting -----------------------------------------------------------------------------------------------------


def test_a_list_of_formats_is_read_in_any_case_and_order():
    assert formats.parse("TIFF, jpg,Heic") == ("JPEG", "TIFF", "HEIF")


@pytest.mark.parametrize("text", ["jpeg,jxl", ",", "all", "jpeg png"])
def test_an_unknown_format_is_an_error_that_lists_them_all(text):
    with pytest.raises(formats.UnknownFormatError, match=r"jpeg, png, webp, bmp, gif, tiff, avif, heif"):
        formats.parse(text)


def test_a_missing_library_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "HEIF", formats.Format("HEIC", module="no_such_module", extra="heif"))
    assert formats.missing(["JPEG", "HEIF"]) == ("HEIC needs the extra heif: pip install 'faster-rcnn-service[heif]'")
    with pytest.raises(formats.MissingLibraryError):
        formats.accept(["HEIF"])
    formats.accept_all()
    assert "HEIF" not in formats.accepted()


@pytest.mark.parametrize("format", ["TIFF", "AVIF", "HEIF"])
def test_a_format_that_is_off_is_named_with_the_setting(format):
    data = saved(photo(), format)
    formats.accept(formats.DEFAULT)
    name = formats.FORMATS[format].name
    text = fault(data)
    assert text.startswith(f"it is a{'n' if name == 'AVIF' else ''} {name} image. This service reads JPEG, PNG, WebP")
    assert f"IMAGE_FORMATS=jpeg,png,webp,bmp,gif,{format.lower()}" in text


def test_a_format_that_is_always_on_can_be_switched_off():
    data = saved(photo(), "BMP")
    formats.accept(["JPEG"])
    assert fault(data).startswith("it is a BMP image. This service reads JPEG.")


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", TIFF_COMPRESSIONS)
def test_a_tiff_is_decoded_to_its_pixels(compression):
    image = photo()
    data = saved(image, "TIFF", compression=compression)
    canvas = decode(data, GEOMETRY)
    assert canvas.warnings == ()
    np.testing.assert_allclose(canvas.pixels, np.asarray(image), atol=12 if compression == "jpeg" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "LA", "YCbCr"])
def test_a_tiff_of_every_common_mode_is_decoded(mode):
    image = photo(mode=mode)
    expected = np.asarray(upright(saved(image.convert("RGBA"), "PNG")))
    found = np.asarray(upright(saved(image, "TIFF")))
    np.testing.assert_allclose(found, expected, atol=2)


def test_a_tiff_of_16_bits_keeps_the_high_byte():
    shades = np.full((40, 30), 0x5AFF, np.uint16)
    assert (decode(saved(Image.fromarray(shades), "TIFF"), GEOMETRY).pixels == 0x5A).all()


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif_and_heic_are_decoded_to_nearly_the_pixels(format, mode):
    image = photo(mode=mode)
    canvas = decode(saved(image, format, quality=95), GEOMETRY)
    expected = np.asarray(upright(saved(image, "PNG")))
    assert np.abs(canvas.pixels.astype(int) - expected).mean() < 3
    assert canvas.warnings == ()


def lossless(image: Image.Image, format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if format == "HEIF":  # its encoder writes the rotation for EXIF data in bytes, and leaves it out for an object
        return saved(image, format, exif=exif.tobytes(), quality=-1, chroma=444, matrix_coefficients=0)
    return saved(image, format, exif=exif, **({"quality": 100, "subsampling": "4:4:4"} if format == "AVIF" else {}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["TIFF", "AVIF", "HEIF"])
@pytest.mark.contract("3.11")
def test_each_orientation_is_applied_exactly_once(format, orientation):
    """Pillow turns a TIFF when it loads it, and reports the rotation of an AVIF as EXIF; libheif turns a HEIC."""
    original = photo(480, 330)
    stored = original if orientation == 1 else original.transpose(TRANSPOSE[UNDO[orientation]])
    data = lossless(stored, format, orientation)
    whole = upright(data)
    assert whole.size == (480, 330)
    np.testing.assert_allclose(np.asarray(whole), np.asarray(original), atol=4)
    canvas = decode(data, GEOMETRY)
    assert (canvas.width, canvas.height) == (480, 330)
    expected = original.resize(canvas.pixels.shape[1::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(canvas.pixels, np.asarray(expected), atol=4)


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_the_orientation_in_xmp_does_not_turn_the_image_again(format):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="1"/></x:xmpmeta>'
    data = saved(photo(), format, xmp=xmp).replace(b'Orientation="1"', b'Orientation="6"')
    assert b'Orientation="6"' in data
    assert upright(data).size == (400, 320)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
@pytest.mark.contract("3.11")
def test_the_first_frame_of_an_animation_is_used_with_a_warning(format):
    frames = [photo(), photo().transpose(Image.Transpose.ROTATE_180)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    canvas = decode(data, GEOMETRY)
    assert canvas.warnings == damage(data) == ("further_pages",)
    np.testing.assert_allclose(canvas.pixels.mean(axis=(0, 1)), np.asarray(frames[0]).mean(axis=(0, 1)), atol=8)
    assert decode(saved(frames[0], format), GEOMETRY).warnings == ()


def test_a_gif_whose_first_frame_is_smaller_than_its_screen_has_the_warning_too():
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    data = bytearray(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    data[6:10] = b"\x40\0\x30\0"  # a screen of 64×48
    assert decode(bytes(data), GEOMETRY).warnings == ("further_pages",)


@pytest.mark.parametrize("format", ["TIFF", "HEIF"])
def test_the_first_of_several_pages_is_used_with_a_warning(format):
    pages = [photo(), photo().transpose(Image.Transpose.ROTATE_180)]
    data = saved(pages[0], format, save_all=True, append_images=pages[1:])
    canvas = decode(data, GEOMETRY)
    assert canvas.warnings == damage(data) == ("further_pages",)
    np.testing.assert_allclose(canvas.pixels, np.asarray(pages[0]), atol=0 if format == "TIFF" else 60)
    assert decode(saved(pages[0], format), GEOMETRY).warnings == ()


def test_an_image_that_is_not_alone_in_its_file_is_not_called_damaged():
    words = str(DamagedImageError(("further_pages",)))
    assert "Send each of them as an image of its own. Without strict=true" in words
    assert words.startswith("it has more than one image: the file has several pages, images or frames")
    assert image_warnings(("further_pages",))[0]["detail"].startswith("The image is one of several: the file has")
    assert str(DamagedImageError(("further_pages", "missing_end"))).startswith("it is damaged or incomplete: the file")


# --- TIFF files made by hand -----------------------------------------------------------------------------------------


def tiff_file(
    tags: dict[int, tuple[int, ...] | bytes],
    body: bytes = b"",
    following: int = 0,
    order: str = "<",
    big: bool = False,
) -> bytes:
    """A file with one directory, whose values are LONG or bytes. `body` begins at byte 8, or at byte 16 if `big`."""
    start, room, number, offset = (16, 8, "Q", "Q") if big else (8, 4, "H", "I")
    place, extra, entries = start + len(body), b"", []
    end = place + struct.calcsize(f"={number}") + (4 + 2 * room) * len(tags) + room
    for tag, values in sorted(tags.items()):
        kind, count = (7, len(values)) if isinstance(values, bytes) else (4, len(values))
        packed = values if isinstance(values, bytes) else struct.pack(f"{order}{count}I", *values)
        value = packed.ljust(room, b"\0")
        if len(packed) > room:
            value = struct.pack(f"{order}{offset}", end + len(extra))
            extra += packed
        entries.append(struct.pack(f"{order}HH{offset}", tag, kind, count) + value)
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}H", 43 if big else 42) + (struct.pack(f"{order}HH", 8, 0) if big else b"")
    head += struct.pack(f"{order}{offset}", place)
    directory = struct.pack(f"{order}{number}", len(tags)) + b"".join(entries)
    return head + body + directory + struct.pack(f"{order}{offset}", following) + extra


def grey(width: int = 40, height: int = 30, size: int = 1200, start: int = 8) -> dict[int, tuple[int, ...] | bytes]:
    """The tags of an image of one byte a pixel, without compression, in one strip of `size` bytes."""
    plain = {258: (8,), 259: (1,), 262: (1,), 277: (1,)}
    return {256: (width,), 257: (height,), **plain, 273: (start,), 278: (height,), 279: (size,)}


PIXELS = bytes(range(240)) * 5  # 40 x 30


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_either_byte_order_is_read(order):
    found = upright(tiff_file(grey(), PIXELS, order=order))
    np.testing.assert_array_equal(np.asarray(found)[..., 0], np.frombuffer(PIXELS, np.uint8).reshape(30, 40))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
def test_bigtiff_is_read(order, compression):
    body = PIXELS if compression == 1 else zlib.compress(PIXELS)
    tags = grey(size=len(body), start=16) | {259: (compression,)}
    found = upright(tiff_file(tags, body, order=order, big=True))
    np.testing.assert_array_equal(np.asarray(found)[..., 0], np.frombuffer(PIXELS, np.uint8).reshape(30, 40))


def test_old_jpeg_is_read():
    """Compression 6, as scanners wrote it in the nineties: the strip is a whole JPEG file."""
    jpeg = saved(photo(96, 64), "JPEG", subsampling=0)
    tags = {
        256: (96,),
        257: (64,),
        258: (8, 8, 8),
        259: (6,),
        262: (6,),
        273: (8,),
        277: (3,),
        278: (64,),
        279: (len(jpeg),),
    }
    found = upright(tiff_file(tags | {513: (8,), 514: (len(jpeg),), 530: (1, 1)}, jpeg))
    np.testing.assert_allclose(np.asarray(found), np.asarray(photo(96, 64)), atol=12)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("<", "it is a TIFF image of more than 8 bits in which 0 means white"),
        (">", "stores its pixels in an unusual way"),
    ],
)
@pytest.mark.parametrize("compression", [1, 8])
def test_a_negative_of_16_bits_is_refused_because_it_would_be_read_as_a_positive(order, words, compression):
    body = PIXELS * 2 if compression == 1 else zlib.compress(PIXELS * 2)
    tags = grey(size=len(body)) | {258: (16,), 259: (compression,)}
    upright(tiff_file(tags, body, order=order))
    assert words in fault(tiff_file(tags | {262: (0,)}, body, order=order))


def test_a_negative_of_8_bits_is_read():
    found = np.asarray(upright(tiff_file(grey() | {262: (0,)}, PIXELS)))[..., 0]
    np.testing.assert_array_equal(255 - found, np.frombuffer(PIXELS, np.uint8).reshape(30, 40))


def test_tiles_and_separate_channels_are_read():
    # two tiles of 16 x 16 beside each other for each of three channels: the values 1 to 6
    body = b"".join(bytes([value]) * 256 for value in range(1, 7))
    starts = tuple(8 + 256 * tile for tile in range(6))
    tags = {256: (32,), 257: (16,), 258: (8, 8, 8), 259: (1,), 262: (2,), 277: (3,), 284: (2,)}
    data = tiff_file(tags | {322: (16,), 323: (16,), 324: starts, 325: (256,) * 6}, body)
    pixels = np.asarray(upright(data))
    assert pixels[0, 0].tolist() == [1, 3, 5]
    assert pixels[0, 31].tolist() == [2, 4, 6]


def test_tags_of_geotiff_and_others_that_say_nothing_about_pixels_do_not_matter():
    geo = {33550: b"\1" * 24, 33922: b"\2" * 48, 34735: b"\3" * 32, 34736: b"\4" * 8, 34737: b"WGS 84|", 42113: b"0\0"}
    assert damage(tiff_file(grey() | geo, PIXELS)) == ()


def test_a_smaller_copy_or_a_mask_is_not_a_further_page():
    def with_second(**tags: int) -> bytes:
        plain = tiff_file(grey(), PIXELS)
        second = len(plain)
        entries = b"".join(struct.pack("<HHII", int(tag[1:]), 4, 1, value) for tag, value in tags.items())
        first = plain[:-4] + struct.pack("<I", second)
        return first + struct.pack("<H", len(tags)) + entries + bytes(4)

    assert damage(with_second(t254=1)) == damage(with_second(t254=4)) == damage(with_second(t255=2)) == ()
    assert (
        damage(with_second(t254=0)) == damage(with_second(t254=2)) == damage(with_second(t256=9)) == ("further_pages",)
    )


def test_a_loop_of_directories_ends():
    plain = tiff_file(grey(), PIXELS, following=8 + len(PIXELS))
    assert damage(plain) == ("further_pages",)  # what follows the first page is a page, though it is the same one


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (grey(60_000, 60_000), "far too many pixels; the limit"),
        (grey() | {279: (10**6,)}, "cut short"),
        (grey() | {273: (10**9,)}, "cut short"),
        (grey() | {273: (8,) * 300, 279: (1200,) * 300}, "overlap"),
        (grey() | {273: (8,) * 60_000}, "more strips"),
        (grey() | {322: (2**16,), 323: (2**16,), 324: (8,), 325: (1200,)}, "tiles are far larger"),
        (grey() | {259: (34925,)}, "LZMA"),
        (grey() | {259: (50000,)}, "Zstandard"),
        (grey() | {259: (12345,)}, "number 12345"),
        (grey() | {258: (32,)}, "more than 16 bits"),
        (grey() | {258: (16,), 339: (2,)}, "no fixed meaning"),
        (grey() | {256: (0,)}, "cut short"),
        ({256: (40,)}, "cut short"),
    ],
)
def test_a_crafted_tiff_is_refused_before_a_pixel_is_decoded(tags, words):
    assert words in fault(tiff_file(tags, PIXELS))


# BYTE, ASCII, SBYTE, UNDEFINED, SSHORT, SLONG, FLOAT, DOUBLE: none of them is allowed for a size or a position
@pytest.mark.parametrize("kind", [1, 2, 6, 7, 8, 9, 11, 12])
@pytest.mark.parametrize("tag", sorted(grey()))
def test_a_tiff_whose_numbers_have_a_wrong_type_is_refused_before_its_cost_is_estimated(tag, kind):
    """The estimate would fail for text, and be negative for a negative number of rows in a strip."""
    data = bytearray(tiff_file(grey(), PIXELS))
    entry = 8 + len(PIXELS) + 2 + 12 * sorted(grey()).index(tag)
    for value in (data[entry + 8 : entry + 12], b"abc\0", b"\0\0\0\x80", b"\xff" * 4):
        data[entry + 2 : entry + 12] = struct.pack("<HI", kind, 1) + value
        assert "values of a wrong type" in fault(bytes(data))
    data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 0, 0)  # no value
    assert "values of a wrong type" in fault(bytes(data))


def test_a_directory_with_too_many_entries_is_refused():
    data = tiff_file(grey(), PIXELS)
    place = 8 + len(PIXELS)
    assert "50,000 entries" in fault(data[:place] + struct.pack("<H", 50_000) + data[place + 2 :])


def test_a_jpeg_strip_with_hundreds_of_scans_is_refused():
    data = saved(photo(), "TIFF", compression="jpeg")
    assert "more scans" in fault(data + b"\xff\xda" * 200)


def test_a_camera_raw_file_is_not_read_as_the_preview_in_it():
    assert fault(tiff_file(grey() | {50706: (1,)}, PIXELS)).startswith("it is a raw file of a camera (DNG)")
    maker = {271: b"NIKON CORPORATION", 330: (8,)}
    assert fault(tiff_file(grey() | maker, PIXELS)).startswith("it is a raw file of a camera (NEF)")


@pytest.mark.parametrize("compression", TIFF_COMPRESSIONS)
def test_a_tiff_cut_short_anywhere_is_refused(compression):
    data = saved(photo(200, 150), "TIFF", compression=compression)
    for end in range(8, len(data) - 16, max(1, len(data) // 40)):
        assert "cut short" in fault(data[:end])


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_avif_and_heic_cut_short_are_refused(format):
    data = saved(photo(200, 150), format)
    for end in range(40, len(data) - 4, max(1, len(data) // 40)):
        text = fault(data[:end])
        assert f"the {formats.FORMATS[format].name} data is broken or cut short" in text or "no AV1 frame" in text


def test_nothing_is_printed_about_broken_tiff_files():
    """The library prints a line for each fault, so that clients could fill the log."""
    program = """
import io, sys
import numpy as np
from PIL import Image
from service.images import formats
from service.images.decode import ImageError, upright
formats.accept_all()
image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8))
for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
    out = io.BytesIO()
    image.save(out, "TIFF", compression=compression)
    data = bytearray(out.getvalue())
    data[200:5000] = bytes(4800)
    try:
        upright(bytes(data))
    except ImageError:
        pass
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("", "")


# --- AVIF and HEIF files made by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_frames_that_are_larger_than_the_declared_size_are_refused_before_they_are_decoded(format):
    data = saved(Image.new("RGB", (1500, 1000)), format)
    assert len(data) < 10_000
    small = data.replace(struct.pack(">II", 1500, 1000), struct.pack(">II", 64, 64))
    assert small != data
    words = {"AVIF": "AV1 frames are far larger", "HEIF": "the HEIC data is broken"}
    assert words[format] in fault(small)


def test_overlapping_items_are_refused():
    """The only item is given 100 extents, each of which is the whole file."""
    data = saved(photo(), "AVIF")
    at = data.index(b"iloc")
    size = int.from_bytes(data[at - 4 : at], "big")
    extents = (0).to_bytes(4, "big") + len(data).to_bytes(4, "big")
    box = b"iloc" + bytes(4) + b"\x44\0" + b"\0\1" + b"\0\1" + bytes(2) + (100).to_bytes(2, "big") + 100 * extents
    changed = (4 + len(box)).to_bytes(4, "big") + box
    meta = data.index(b"meta")
    longer = int.from_bytes(data[meta - 4 : meta], "big") + len(changed) - size
    moved = data[: meta - 4] + longer.to_bytes(4, "big") + data[meta : at - 4] + changed + data[at - 4 + size :]
    assert "items overlap" in fault(moved) or "cut short" in fault(moved)


@pytest.mark.parametrize("brand", [b"avis", b"msf1", b"mif1"])
def test_an_avif_animation_is_refused_by_name(brand):
    """If the main brand is neither avif nor avis, libavif decodes the track, too."""
    frames = [photo(), photo()]
    data = saved(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    changed = data[:8] + brand + data[12:]
    with Image.open(io.BytesIO(changed)) as image:
        assert image.n_frames == 2
    assert fault(changed).startswith("it is an AVIF animation")


def box(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", 8 + len(contents)) + kind + contents


def one_item(frame: bytes) -> bytes:
    """The boxes of an AVIF file whose only item is `frame`, without what says its size."""
    location = bytes(4) + b"\x44\0" + struct.pack(">HHHHII", 1, 1, 0, 1, 8, len(frame))
    return box(b"mdat", frame) + box(b"meta", bytes(4) + box(b"iloc", location))


def sequence_header(width: int, height: int, head: int = 0x0A) -> bytes:
    """A unit (AV1 specification 5.5.1) with a reduced header: profile, two flags, level, and sides in 16 bits each."""
    bits = f"{0:03b}11{0:05b}{15:04b}{15:04b}{width - 1:016b}{height - 1:016b}"
    contents = int(bits.ljust(56, "0"), 2).to_bytes(7, "big")
    return bytes((head, len(contents))) + contents


EMPTY_UNIT = bytes((15 << 3 | 2, 0))  # padding


@pytest.mark.parametrize("head", [0x0A, 0x0B, 0x8A])  # the lowest and the highest bit must be zero; dav1d ignores them
def test_a_second_av1_frame_that_is_far_larger_is_found(head):
    frame = sequence_header(64, 64) + EMPTY_UNIT * 5000
    iso_media.check_av1_frames(one_item(frame), 64, 64)
    with pytest.raises(iso_media.IsoMediaError, match="far larger"):
        iso_media.check_av1_frames(one_item(frame + sequence_header(16_384, 16_384, head)), 64, 64)


def test_an_av1_frame_of_more_parts_than_are_read_is_refused():
    frame = sequence_header(64, 64) + EMPTY_UNIT * iso_media.MAX_UNITS + sequence_header(16_384, 16_384)
    with pytest.raises(iso_media.IsoMediaError, match="more parts"):
        iso_media.check_av1_frames(one_item(frame), 64, 64)


def test_items_of_very_many_pieces_are_refused():
    """1,000 items of 1,000 pieces each, whose positions and lengths take no byte."""
    items = b"".join(struct.pack(">HHH", number, 0, 1000) for number in range(1000))
    location = box(b"iloc", bytes(4) + b"\0\0" + struct.pack(">H", 1000) + items)
    with pytest.raises(iso_media.IsoMediaError, match="more pieces"):
        iso_media.check_items(box(b"meta", bytes(4) + location))


@pytest.mark.parametrize("format", ["TIFF", "AVIF", "HEIF"])
def test_pixels_are_counted_before_they_are_decoded(format):
    data = saved(photo(100, 50), format)
    with pytest.raises(ImageError, match="4,999"):
        decode(data, GEOMETRY, max_pixels=4999)
    assert decode(data, GEOMETRY, max_pixels=5000).width == 100


@pytest.mark.parametrize("format", ["TIFF", "AVIF", "HEIF"])
def test_a_file_with_changed_bytes_is_decoded_or_refused(format):
    rng = np.random.default_rng(0)
    for options in [{"compression": each} for each in TIFF_COMPRESSIONS] if format == "TIFF" else [{}]:
        data = saved(photo(120, 90), format, **options)
        for _ in range(40):
            changed = bytearray(data)
            for place in rng.integers(0, len(data), rng.integers(1, 6)):
                changed[place] = rng.integers(0, 256)
            with contextlib.suppress(ImageError):
                pixels = decode(bytes(changed), GEOMETRY).pixels
                assert (pixels.ndim, pixels.shape[2], pixels.dtype) == (3, 3, np.uint8)


def test_the_page_alone_is_a_valid_tiff():
    first = tiff.first_page(saved(photo(), "TIFF", compression="tiff_lzw")).first
    with Image.open(io.BytesIO(first)) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(photo()))
