"""Images with more than 8 bits per sample: every stored form, every range, and the warnings about both."""

import io
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.images import depth, integrity
from service.images.decode import ORIENTATION, DamagedImageError, ImageError, decode, upright, value_range
from service.images.depth import WHITE, ValueRange
from service.images.fit import Geometry
from tests.service.images.png16 import chunk, png16

SHAPES = {"grey": (), "grey and alpha": (2,), "RGB": (3,), "RGBA": (4,)}


def picture(channels: tuple[int, ...], height: int = 30, width: int = 40) -> np.ndarray:
    """Levels from 0 to 255, opaque where there is alpha."""
    levels = np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    levels[0, 0], levels[0, 1] = 0, 255
    if channels in ((2,), (4,)):
        levels[..., -1] = 255
    return levels


def scaled(levels: np.ndarray, white: int) -> np.ndarray:
    return np.rint(levels.astype(np.float64) * white / 255).astype(np.uint16)


def png8(levels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG", **options)
    return out.getvalue()


def geometry(white: int, antialias: bool = True) -> Geometry:
    return Geometry(((32, 64), (64, 32)), 24, 64, antialias, white)


def decoded(data: bytes, white: int, antialias: bool = True) -> np.ndarray:
    return decode(data, geometry(white, antialias)).pixels.astype(int)


@pytest.mark.contract("2.4")
@given(
    st.sampled_from(list(SHAPES)),
    st.sampled_from([255, 1023, 3000, 4095, 16383, WHITE]),
    st.booleans(),
    st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_an_image_is_the_8_bit_image_within_one_level(kind, white, antialias, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    levels = picture(SHAPES[kind])
    deep = png16(scaled(levels, white), chunk(b"eXIf", exif.tobytes()[6:]))
    plain = png8(levels, exif=exif)
    assert decode(deep, geometry(white)).warnings == ()
    assert abs(decoded(deep, white, antialias) - decoded(plain, white, antialias)).max() <= 1
    assert abs(np.asarray(upright(deep, white=white), int) - np.asarray(upright(plain), int)).max() <= 1


@pytest.mark.parametrize("white", [1023, 4095])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.contract("2.4")
def test_a_file_of_10_or_12_bits_is_reported_as_nearly_black_by_a_model_of_16_bits(kind, white):
    answer = decode(png16(scaled(picture(SHAPES[kind]), white)), geometry(WHITE))
    assert answer.warnings == ("nearly_black",)
    clause = integrity.clause(answer.warnings[0])
    # of colours only the high byte is decoded then: 1023 = 3·256 + 255 and 4095 = 15·256 + 255, the largest either way
    assert f"above {white:,}" in clause
    assert "65,535 is white" in clause


@pytest.mark.parametrize(
    ("largest", "white", "words"),
    [
        (4095, WHITE, ("nearly_black",)),  # 65535 / 16 = 4095.9
        (4096, WHITE, ()),
        (255, 4095, ("nearly_black",)),  # 4095 / 16 = 255.9
        (256, 4095, ()),
        (4095, 4095, ()),
        (4096, 4095, ("beyond_white",)),
        (0, 4095, ()),  # a black image is black in any range
    ],
)
@pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)])
@pytest.mark.contract("2.4")
def test_the_limits_of_the_warnings(largest, white, words, channels):
    values = np.zeros((30, 40, *channels), np.uint16)
    if channels:
        values[7, 9, 0] = largest
    else:
        values[7, 9] = largest
    if channels in ((2,), (4,)):
        values[..., -1] = WHITE  # alpha does not count
    assert decode(png16(values), geometry(white)).warnings == words


def test_values_beyond_white_become_white():
    values = np.full((30, 40, 3), 60_000)
    answer = decode(png16(values), geometry(4095))
    assert (answer.pixels == 255).all()
    assert "go up to 60,000, but 4,095 is white" in integrity.clause(answer.warnings[0])
    error = DamagedImageError(answer.warnings)
    assert str(error).startswith("it has values that do not fit the model: the values")


def test_alpha_has_the_range_of_the_colours():
    """A camera's 12 bits are opaque at 4095; a file whose alpha has all 16 bits is opaque too."""
    for opaque in (4095, WHITE):
        values = np.full((30, 40, 4), 4095 * 100 // 255)
        values[..., 3] = opaque
        assert abs(decoded(png16(values), 4095) - 100).max() <= 1
    values[..., 3] = 0
    assert (decoded(png16(values), 4095) == 255).all()  # transparent pixels become white


@pytest.mark.parametrize("white", [4095, WHITE])
def test_a_transparent_colour_is_compared_with_all_bits(white):
    """0x0101 is transparent; 0x0100, which has the same high byte, is not."""
    for channels in (1, 3):
        values = np.full((30, 40, channels), 0x0101)
        values[:, 20:] = 0x0100
        clear = chunk(b"tRNS", struct.pack(f">{channels}H", *[0x0101] * channels))
        pixels = np.asarray(upright(png16(values.squeeze(), clear), white=white))
        assert (pixels[:, :20] == 255).all()
        assert (pixels[:, 20:] == (0x0100 * 255 + white // 2) // white).all()


def test_png_s_significant_bits_do_not_change_the_range():
    """They say how many of the bits carry information, not that the values are small."""
    levels = picture((3,))
    data = png16(scaled(levels, WHITE), chunk(b"sBIT", bytes([12, 12, 12])))
    assert abs(np.asarray(upright(data), int) - levels).max() <= 1


def test_8_bit_images_are_not_affected_by_white():
    levels = picture((3,))
    np.testing.assert_array_equal(decoded(png8(levels), 1023), decoded(png8(levels), WHITE))


@pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)])
def test_the_value_range_of_a_file(channels):
    values = np.random.default_rng(1).integers(0, 3000, (30, 40, *channels))
    values[3, 4] = 3001
    if channels in ((2,), (4,)):
        values[..., -1] = WHITE
    assert value_range(png16(values)) == ValueRange(16, 3001)
    assert value_range(png8(picture((3,)))) is None
    with pytest.raises(ImageError):
        value_range(png16(values)[:-60])


def test_an_interlaced_file_is_read_too():
    """Seven passes over one image: here of one pixel, which is all of the first pass."""
    data = bytearray(png16(np.array([[[1000, 2000, 3000]]])))
    header = bytes(data[16:28]) + b"\x01"
    data[8:33] = chunk(b"IHDR", header)
    assert np.asarray(upright(bytes(data), white=4095)).tolist() == [[[62, 125, 187]]]  # 255 · 1000 / 4095 = 62.3 …


@pytest.mark.parametrize("compression", [1, 5, 8])  # none, LZW, Deflate: Pillow's own decoder, and libtiff
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_tiff_of_16_bits_is_read_with_all_bits(channels, compression):
    values = np.random.default_rng(0).integers(0, 4096, (30, 40, channels), dtype=np.uint16)
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]  # OpenCV takes BGR
    found, data = cv2.imencode(".tiff", values[..., order].copy(), [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    assert found
    image = Image.open(io.BytesIO(data.tobytes()))
    deep = depth.opened(image, 4095)
    assert deep is not None
    image.load()
    pixels = deep.pixels(image, 4095)
    assert pixels.largest() == values[..., :3].max()
    expected = np.rint(values.astype(float) * 255 / 4095).squeeze()
    np.testing.assert_array_equal(np.asarray(pixels.in_8_bits()), expected)


def test_a_tiff_of_16_bits_in_planes_is_refused():
    """Pillow takes the first half of each plane for a plane of 8 bits."""
    numbers = {256: 4, 257: 2, 259: 1, 262: 2, 277: 3, 278: 2, 284: 2}  # 4 × 2 pixels, RGB, in planes
    with pytest.raises(depth.UnreadableDepthError, match="one after the other"):
        depth.opened(Image.open(io.BytesIO(planar_tiff(numbers))), WHITE)


def planar_tiff(numbers: dict[int, int]) -> bytes:
    """Three planes of 16 bytes. Values that do not fit an entry lie behind the directory."""
    entries = {tag: (3, 1, struct.pack("<HH", value, 0)) for tag, value in numbers.items()}
    behind = 8 + 2 + 12 * (len(entries) + 3) + 4
    entries[258] = (3, 3, struct.pack("<I", behind))
    entries[273] = (4, 3, struct.pack("<I", behind + 6))
    entries[279] = (4, 3, struct.pack("<I", behind + 18))
    listed = b"".join(struct.pack("<HHI", tag, *entries[tag][:2]) + entries[tag][2] for tag in sorted(entries))
    pixels = behind + 30
    more = struct.pack("<3H6I", 16, 16, 16, pixels, pixels + 16, pixels + 32, 16, 16, 16)
    return b"II" + struct.pack("<HIH", 42, 8, len(entries)) + listed + bytes(4) + more + bytes(48)
