"""Strips, compared with the same operations on the whole image."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.images import upright
from service.images.decode import ORIENTATION, decode
from service.images.depth import DeepImage
from service.images.fit import Geometry
from service.images.upright import TRANSPOSE, resized, rgb, rows_reader, swapped

SIDES = st.integers(1, 70)
ORIENTATIONS = st.integers(1, 8)
# Each mode, and the transparency that the file's header may add to it.
KINDS = st.sampled_from(
    [
        ("1", None),
        ("L", None),
        ("L", 7),
        ("LA", None),
        ("P", None),
        ("P", 3),
        ("P", bytes(range(256))),
        ("RGB", None),
        ("RGB", (1, 1, 1)),
        ("RGBA", None),
        ("CMYK", None),
        ("I;16", None),
        ("I", None),
    ]
)


@pytest.fixture(autouse=True)
def _small_strips(monkeypatch):
    """Strips of one to fifty rows, so that images of a few thousand pixels need several."""
    monkeypatch.setattr(upright, "STRIP_PIXELS", 50)


def noise(mode: str, transparency: object, width: int, height: int) -> Image.Image | DeepImage:
    """Random pixels of few values, so that a transparent colour occurs."""
    rng = np.random.default_rng(width * 100 + height)
    if mode in ("I;16", "I"):
        values = rng.integers(0, 2**16, (height, width), dtype=np.uint16)
        return DeepImage(Image.fromarray(values if mode == "I;16" else values.astype(np.int32)))
    if mode == "1":
        return Image.fromarray(rng.integers(0, 2, (height, width)).astype(bool))
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = rng.integers(0, 10, (height, width, bands), dtype=np.uint8) * 25
    image = Image.frombytes(mode, (width, height), values.tobytes())
    if mode == "P":
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def whole(image: Image.Image | DeepImage, orientation: int) -> Image.Image:
    """The plain, turned image in one piece: L, RGB or RGBA."""
    if isinstance(image, DeepImage):
        image = Image.fromarray((np.asarray(image.high) >> 8).astype(np.uint8))  # the high byte
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode != "L":
        image = image.convert("RGB")
    return image.transpose(TRANSPOSE[orientation]) if orientation > 1 else image


def on_white(image: Image.Image) -> np.ndarray:
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


@given(KINDS, SIDES, SIDES, ORIENTATIONS)
@settings(max_examples=150, deadline=None)
def test_the_upright_image_is_the_same_with_strips(kind, width, height, orientation):
    image = noise(*kind, width, height)
    expected = on_white(whole(image, orientation))
    np.testing.assert_array_equal(np.asarray(rgb(image, orientation)), expected)
    read = rows_reader(image, orientation)
    first, end = expected.shape[0] // 3, expected.shape[0]
    np.testing.assert_array_equal(read(first, end), expected[first:end])


@given(KINDS, SIDES, SIDES, ORIENTATIONS, st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.9), st.booleans())
@settings(max_examples=250, deadline=None)
def test_the_resized_image_is_the_same_with_strips(kind, width, height, orientation, w, h, cut, at_start):
    """`cut` is the part of a pixel that the box leaves out, as for a JPEG decoded at a reduced scale."""
    image = noise(*kind, width, height)
    right, lower = swapped(image.size, orientation)
    box = (cut, 0.0, float(right), lower - cut) if at_start else (0.0, cut, right - cut, float(lower))
    expected = whole(image, orientation).resize((w, h), Image.Resampling.BILINEAR, box=box)
    np.testing.assert_array_equal(np.asarray(resized(image, orientation, (w, h), box)), on_white(expected))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("antialias", [True, False])
def test_decoding_a_file_is_the_same_with_strips(monkeypatch, antialias, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    out = io.BytesIO()
    noise("LA", None, 90, 64).save(out, "PNG", exif=exif)
    geometry = Geometry(((48, 64), (64, 48)), 40, 64, antialias)
    in_strips = decode(out.getvalue(), geometry).pixels
    monkeypatch.setattr(upright, "STRIP_PIXELS", 2**30)
    np.testing.assert_array_equal(decode(out.getvalue(), geometry).pixels, in_strips)
