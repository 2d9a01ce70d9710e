import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from service.http import problems
from service.http.problems import Problem
from service.images.decode import ORIENTATION, TRANSPOSE, ImageError, decode, upright
from service.images.fit import Geometry

GEOMETRY = Geometry(((320, 448), (448, 320), (384, 384)), min_size=320, max_size=448)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image that resizing and JPEG hardly change, with four different corners, so that turning is visible."""
    corners = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


# --- decoding --------------------------------------------------------------------------------------------------------


def test_an_image_of_the_target_size_keeps_its_pixels(encode):
    image = photo(400, 320)
    canvas = decode(encode(image), GEOMETRY)
    assert (canvas.size, canvas.width, canvas.height) == ((320, 448), 400, 320)
    np.testing.assert_array_equal(canvas.pixels, np.asarray(image))


def test_resizing_uses_pillows_antialiased_bilinear_filter(encode):
    image = photo(640, 480)
    expected = image.resize((427, 320), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(encode(image), GEOMETRY).pixels, np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_file_decodes_to_the_pixels_of_the_upright_one(encode, orientation):
    original = photo(600, 410)
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # 6 and 8 turn by 90 degrees in opposite directions
    stored = original if orientation == 1 else original.transpose(TRANSPOSE[undo[orientation]])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = decode(encode(stored, exif=exif), GEOMETRY)
    straight = decode(encode(original), GEOMETRY)
    assert (turned.width, turned.height, turned.size) == (600, 410, straight.size)
    np.testing.assert_array_equal(turned.pixels, straight.pixels)
    np.testing.assert_array_equal(np.asarray(upright(encode(stored, exif=exif))), np.asarray(original))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(encode, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert decode(encode(photo(600, 410), exif=exif), GEOMETRY).width == 600


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_decoded_at_reduced_scale_is_not_shifted(encode, orientation):
    # 3005 / 8 = 375.6: the reduced image has 376 columns, and the last one covers only 5/8 of a full one
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(photo(3005, 2003), "JPEG", quality=95, exif=exif)
    canvas = decode(data, GEOMETRY)
    h, w = canvas.pixels.shape[:2]
    full = upright(data).resize((w, h), Image.Resampling.BILINEAR)
    difference = np.abs(canvas.pixels.astype(int) - np.asarray(full).astype(int))
    assert difference.mean() < 0.5
    assert difference.max() <= 4


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 2), (1, 20_000), (20_000, 1), (3, 7000)])
def test_images_of_extreme_shapes_are_decoded(encode, width, height):
    canvas = decode(encode(photo(width, height)), GEOMETRY)
    assert (canvas.width, canvas.height) == (width, height)
    assert canvas.pixels.shape[0] >= 1
    assert canvas.pixels.shape[1] >= 1


def one_colour(data: bytes) -> list[int]:
    pixels = decode(data, GEOMETRY).pixels.reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    return pixels[0].tolist()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 90, [90, 90, 90]),
        ("LA", (90, 255), [90, 90, 90]),
        ("LA", (90, 0), [255, 255, 255]),  # transparent pixels become white
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("RGBA", (100, 0, 0, 51), [224, 204, 204]),  # 255 - 51/255 * (255 - c)
        ("I;16", 0x5AFF, [0x5A, 0x5A, 0x5A]),  # the high byte
    ],
)
def test_every_mode_is_converted_to_rgb(encode, mode, colour, expected):
    assert one_colour(encode(Image.new(mode, (40, 30), colour))) == expected


def test_a_transparent_palette_entry_becomes_white(encode):
    image = Image.new("P", (40, 30), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert one_colour(encode(image)) == [200, 100, 50]
    assert one_colour(encode(image, transparency=1)) == [255, 255, 255]


@pytest.mark.parametrize(("format", "options"), [("BMP", {}), ("GIF", {}), ("WEBP", {"lossless": True}), ("JPEG", {})])
def test_other_formats_are_accepted(encode, format, options):
    red = one_colour(encode(Image.new("RGB", (40, 40), (255, 0, 0)), format, **options))
    np.testing.assert_allclose(red, [255, 0, 0], atol=1)  # 254 after JPEG compression


def test_cmyk_jpegs_are_accepted(encode):
    red = one_colour(encode(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG"))
    np.testing.assert_allclose(red, [255, 0, 0], atol=3)


def test_the_first_frame_of_an_animation_is_used(encode):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime")]
    assert one_colour(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]


# --- refusals -------------------------------------------------------------------------------------------------


def refusal(data: bytes, **limits: int) -> Problem:
    """The problem for an upload that both functions of the decoder refuse."""
    with pytest.raises(ImageError) as caught:
        decode(data, GEOMETRY, **limits)
    with pytest.raises(ImageError) as also_caught:
        upright(data, **limits)
    assert str(also_caught.value) == str(caught.value)
    assert "0x" not in str(caught.value)  # without text from the library's message, and without an address
    assert "BytesIO" not in str(caught.value)
    return problems.of(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        b"\xff\xd8\xff\xe0" + b"\xff" * 500,
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"GIF89a",
        b"BM" + b"\xff" * 60,
    ],
)
def test_bytes_that_are_not_an_image_are_a_bad_request(data):
    assert refusal(data).status == 400


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_an_image_cut_short_anywhere_is_refused(encode, format):
    data = encode(photo(200, 150), format)
    # a file may lack only the end marker, because all its pixels are present
    for end in range(1, len(data) - 16, max(1, len(data) // 60)):
        assert refusal(data[:end]).status == 400


def test_pixels_are_counted_before_they_are_decoded(encode):
    data = encode(Image.new("L", (100, 50)))
    assert refusal(data, max_pixels=4999).status == 413
    assert "4,999" in refusal(data, max_pixels=4999).detail
    assert decode(data, GEOMETRY, max_pixels=5000).width == 100


def test_a_header_with_an_absurd_size_is_refused_without_allocating_memory():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    assert refusal(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")).status == 413


def test_a_jpeg_with_thousands_of_scans_is_refused(encode):
    data = encode(photo(300, 200), "JPEG", progressive=True)
    assert decode(data, GEOMETRY).width == 300
    last = data[data.rindex(b"\xff\xda") : -2]
    assert "scans" in refusal(data[:-2] + last * 1000 + data[-2:]).detail


def test_decoding_does_not_modify_the_bytes(encode):
    data = encode(photo(100, 80))
    before = bytes(data)
    decode(data, GEOMETRY)
    assert data == before
    assert Image.open(io.BytesIO(data)).size == (100, 80)
