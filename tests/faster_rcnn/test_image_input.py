"""The forms in which an image may be given from Python, and those that are refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faster_rcnn.image_input import as_file
from service.images.decode import ORIENTATION, upright
from service.images.depth import WHITE
from tests.service.images.png16 import png16


def pixels(image: object, white: int = WHITE) -> np.ndarray:
    """What the service would see, [H, W, 3]."""
    return np.asarray(upright(as_file(image), white=white))  # type: ignore[arg-type]


def levels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_paths_and_bytes_are_the_file_itself(tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    Image.fromarray(levels(5, 7, 3)).save(file)
    for form in (file, str(file), file.read_bytes(), bytearray(file.read_bytes())):
        assert as_file(form) == file.read_bytes()  # type: ignore[arg-type]


def test_arrays_are_rgb_grey_or_rgba() -> None:
    colours = levels(5, 7, 3)
    np.testing.assert_array_equal(pixels(colours), colours)
    np.testing.assert_array_equal(pixels(colours[:, ::-1]), colours[:, ::-1])  # not contiguous
    for grey in (colours[..., 0], colours[..., :1]):
        np.testing.assert_array_equal(pixels(grey), colours[..., :1].repeat(3, axis=2))
    opaque = np.dstack([colours, np.full((5, 7), 255, np.uint8)])
    np.testing.assert_array_equal(pixels(opaque), colours)
    opaque[..., 3] = 0
    assert (pixels(opaque) == 255).all()  # transparent pixels become white, as in the service


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_arrays_of_16_bits_have_the_range_of_the_model(channels: tuple[int, ...]) -> None:
    """Level v of 255 is v · 4095 / 255 of 4095."""
    colours = levels(5, 7, *channels)
    if channels == (4,):
        colours[..., 3] = 255
    deep = np.rint(colours.astype(float) * 4095 / 255).astype(np.uint16)
    np.testing.assert_array_equal(pixels(deep, white=4095), pixels(colours))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_pillow_images_are_turned_upright_like_their_files(mode: str) -> None:
    image = Image.fromarray(levels(6, 8, 3)).convert(mode) if mode != "I;16" else Image.new(mode, (8, 6), 40_000)
    if mode != "I;16":
        exif = image.getexif()
        exif[ORIENTATION] = 6
    expected = upright(as_file(image)).size
    assert expected == ((8, 6) if mode == "I;16" else (6, 8))


def test_a_transparent_colour_of_a_pillow_image_is_kept() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info["transparency"] = 1
    assert (pixels(image) == 255).all()


def refused(image: object) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  each case checks the message
        as_file(image)  # type: ignore[arg-type]
    return str(error.value)


def test_what_would_have_to_be_guessed_is_refused_with_the_remedy() -> None:
    assert "float64 does not say which value is white; convert it to uint8" in refused(np.zeros((5, 7, 3)))
    assert "bool does not say" in refused(np.zeros((5, 7), bool))
    assert "[H, W, 3] (RGB) or [H, W, 4] (RGBA), not 3×5×7" in refused(np.zeros((3, 5, 7), np.uint8))
    assert "not 1×5×7×3" in refused(np.zeros((1, 5, 7, 3), np.uint8))
    assert "no pixels" in refused(np.zeros((0, 7, 3), np.uint8))
    assert "not Tensor; convert a tensor to an array" in refused(torch.zeros(3, 5, 7))
    assert "not list" in refused([[1, 2], [3, 4]])
    assert "mode F does not say which value is white" in refused(Image.new("F", (4, 4)))
    opened = Image.open(io.BytesIO(png16(np.zeros((5, 7, 3)))))
    assert "drops the low bits" in refused(opened)
