"""What `decode` leaves to an engine: which images, with which pixels, and what is said of them."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.images import upright
from service.images.decode import ORIENTATION, decode
from service.images.fit import Canvas, Geometry, Resize, to_original
from service.images.pending import finish, finished
from service.images.upright import TRANSPOSE

CANVASES = ((64, 96), (96, 64), (96, 96))
ORIENTATIONS = st.sampled_from([1, *TRANSPOSE])


def geometry(antialias: bool = True, later: bool = True) -> Geometry:
    return Geometry(CANVASES, 60, 90, antialias, resize_later=later)


def noise(mode: str, width: int, height: int) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, bands), np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def file(image: Image.Image, format: str, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    out = io.BytesIO()
    image.save(out, format, exif=exif, **options)
    return out.getvalue()


@pytest.mark.contract("2.5")
@given(
    st.sampled_from(["L", "RGB"]), st.integers(1, 900), st.integers(1, 900), ORIENTATIONS, st.booleans(),
    st.sampled_from(["JPEG", "PNG"]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_a_resize_that_is_done_later_gives_the_same_pixels(mode, width, height, orientation, antialias, format):
    data = file(noise(mode, width, height), format, orientation)
    now, later = (decode(data, geometry(antialias, when)) for when in (False, True))
    assert now.pending is None
    assert later.image_size == now.pixels.shape[:2]
    assert (later.size, later.width, later.height, later.warnings) == (now.size, now.width, now.height, now.warnings)
    np.testing.assert_array_equal(finished(later).pixels, now.pixels)
    assert finished(later).pending is None
    boxes = np.array([[1, 2, 30, 40]], np.float32)
    np.testing.assert_array_equal(to_original(boxes, later), to_original(boxes, now))


def test_a_large_jpeg_is_still_reduced_by_its_codec():
    # 800 x 600 to 80 x 60: the codec gives 100 x 75, an eighth of each side
    canvas = decode(file(noise("RGB", 800, 600), "JPEG"), geometry())
    assert canvas.pixels.shape == (75, 100, 3)
    assert canvas.pending == Resize(60, 80, (0, 0, 100, 75), True)
    # 801 / 8 = 100.125 pixels, of which the last one is a part of an original pixel
    canvas = decode(file(noise("RGB", 801, 600), "JPEG"), geometry())
    assert canvas.pixels.shape == (75, 101, 3)
    assert canvas.pending == Resize(60, 80, (0, 0, 100.125, 75), True)


@pytest.mark.parametrize(
    ("why", "image", "antialias"),
    [
        ("transparent", noise("RGBA", 120, 90), True),
        ("grey with alpha", noise("LA", 120, 90), True),
        ("has a palette", noise("L", 120, 90).convert("P"), True),
        ("16 bits", Image.fromarray(np.zeros((90, 120), np.uint16)), True),
        ("has the size already", noise("RGB", 80, 60), True),
        ("more than 4 pixels for each pixel of its canvas: 160 x 154 > 4 x 64 x 96", noise("RGB", 160, 154), True),
        # 300 - 90 rows are more than twice 31 - 9 columns
        ("Pillow resizes its columns first", noise("RGB", 31, 300), True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_images_are_resized_at_once(why, image, antialias):
    canvas = decode(file(image, "PNG"), geometry(antialias))
    assert canvas.pending is None
    np.testing.assert_array_equal(canvas.pixels, decode(file(image, "PNG"), geometry(antialias, later=False)).pixels)


def test_interpolation_has_no_order_so_a_tall_image_may_wait():
    assert decode(file(noise("RGB", 31, 300), "PNG"), geometry(antialias=False)).pending


@given(st.sampled_from(["L", "RGB"]), st.integers(1, 90), st.integers(1, 90), ORIENTATIONS)
@settings(max_examples=80, deadline=None)
def test_the_pixels_as_decoded_are_the_same_in_strips(mode, width, height, orientation):
    image = noise(mode, width, height)
    expected = image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upright, "STRIP_PIXELS", 200)
        np.testing.assert_array_equal(upright.pixels(image, orientation), np.asarray(expected.convert("RGB")))


def test_an_image_counts_with_its_pixels_as_decoded_if_they_are_more_than_its_canvas():
    small, large = (
        Canvas(np.zeros((h, w, 3), np.uint8), (64, 96), w, h, pending=Resize(60, 80, (0, 0, w, h), True))
        for h, w in ((30, 40), (120, 160))
    )
    assert small.memory_pixels == 64 * 96
    assert large.memory_pixels == 120 * 160
    assert finished(large).memory_pixels == 64 * 96
    assert finish(large.pixels, large.pending).shape == (60, 80, 3)
