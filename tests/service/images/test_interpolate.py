"""Interpolation, compared with torchvision's own."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from service.images.decode import ORIENTATION, decode, upright
from service.images.fit import Geometry, fit, to_original
from service.images.interpolate import interpolate

# Rounding to whole values changes them by up to 0.5. A coordinate near 1000 in float32 is exact to 6e-5 of a pixel, and
# two neighbouring pixels differ by up to 255, which adds up to 0.016.
NEAR = 0.5 + 0.016
SIDES = st.integers(1, 300)
RULES = st.sampled_from([(64, 96), (100, 100), (97, 333), (200, 160)])


def noise(height: int, width: int) -> np.ndarray:
    """Random pixels. Neighbours differ so much that every misplaced sample is noticed."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_torchvision(pixels: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    transform = GeneralizedRCNNTransform(min_size, max_size, [0.0] * 3, [1.0] * 3).eval()
    resized, _ = transform.resize(torch.tensor(pixels).permute(2, 0, 1).float(), None)
    return resized.permute(1, 2, 0).numpy()


def test_at_half_the_size_each_pixel_is_the_mean_of_two_by_two():
    pixels = np.array([[0, 10, 100, 200], [20, 30, 40, 50]], np.uint8)[..., None].repeat(3, 2)
    # (0 + 10 + 20 + 30) / 4 = 15 and (100 + 200 + 40 + 50) / 4 = 97.5, which is rounded up
    assert interpolate(pixels, 1, 2)[..., 0].tolist() == [[15, 98]]


def test_at_a_quarter_of_the_size_only_the_two_middle_pixels_are_used():
    pixels = np.array([[255, 10, 30, 255]], np.uint8)[..., None].repeat(3, 2)
    assert interpolate(pixels, 1, 1)[..., 0].tolist() == [[20]]  # the centre lies between 10 and 30


def test_at_twice_the_size_the_border_is_repeated():
    pixels = np.array([[0, 100]], np.uint8)[..., None].repeat(3, 2)
    # in old pixels, the centres lie at -0.25, 0.25, 0.75 and 1.25
    assert interpolate(pixels, 1, 4)[..., 0].tolist() == [[0, 25, 75, 100]]


def test_an_image_of_the_target_size_is_unchanged():
    pixels = noise(31, 17)
    np.testing.assert_array_equal(interpolate(pixels, 31, 17), pixels)


@given(SIDES, SIDES, RULES)
@example(3, 290, (64, 96))
@example(1, 1, (97, 333))
@settings(max_examples=150, deadline=None)
def test_sizes_and_pixels_equal_torchvisions(encode, height, width, rule):
    scale = min(rule[0] / min(height, width), rule[1] / max(height, width))
    pixels = noise(height, width)
    canvas = decode(encode(Image.fromarray(pixels)), Geometry(((400, 400),), *rule, antialias=False))
    if min(height, width) * scale < 1:  # torchvision fails if a side would become 0
        assert min(canvas.pixels.shape[:2]) == 1
        return
    expected = by_torchvision(pixels, *rule)
    assert canvas.pixels.shape == expected.shape
    assert np.abs(canvas.pixels - expected).max() <= NEAR


@pytest.mark.parametrize(("height", "width"), [(960, 1280), (1280, 960), (480, 640), (375, 500), (1080, 1920)])
def test_photographs_are_resized_as_by_torchvisions_detectors(encode, height, width):
    geometry = Geometry(((1344, 1344),), 800, 1333, antialias=False)
    pixels = noise(height, width)
    canvas = decode(encode(Image.fromarray(pixels), compress_level=1), geometry)
    expected = by_torchvision(pixels, 800, 1333)
    assert canvas.pixels.shape == expected.shape
    assert np.abs(canvas.pixels - expected).max() <= NEAR


@given(st.integers(1, 8000), st.integers(1, 8000))
def test_sides_are_rounded_down_as_in_torchvision(height, width):
    """Uses torch's meta device, which computes sizes without pixels."""
    fitted = fit(width, height, Geometry(((1344, 1344),), 800, 1333, antialias=False))
    scale = min(800 / min(height, width), 1333 / max(height, width))
    image = torch.empty(1, 1, height, width, device="meta")
    if int(min(height, width) * scale) < 1:
        assert min(fitted.height, fitted.width) == 1
        return
    resized = torch.nn.functional.interpolate(image, scale_factor=scale, mode="bilinear", recompute_scale_factor=True)
    assert (fitted.height, fitted.width) == tuple(resized.shape[2:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_decodes_to_the_pixels_of_the_upright_image(encode, orientation):
    """The JPEG must be decoded at full size, because interpolation gives other pixels on a reduced one."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(Image.fromarray(noise(400, 300)), "JPEG", exif=exif)
    canvas = decode(data, Geometry(((96, 96),), 64, 96, antialias=False))
    expected = by_torchvision(np.asarray(upright(data)), 64, 96)
    assert canvas.pixels.shape == expected.shape
    assert np.abs(canvas.pixels - expected).max() <= NEAR


def test_boxes_are_scaled_back_as_in_torchvision(encode):
    canvas = decode(encode(Image.fromarray(noise(333, 517))), Geometry(((96, 96),), 64, 96, antialias=False))
    h, w = canvas.pixels.shape[:2]
    assert (h, w) == (61, 96)  # 96 / 517 * 333 = 61.8
    boxes = np.array([[0.0, 0.0, w, h], [1.3, 2.7, 50.1, 33.3]], np.float32)
    expected = resize_boxes(torch.from_numpy(boxes), [h, w], [333, 517]).numpy()
    np.testing.assert_array_equal(to_original(boxes, canvas), np.minimum(expected, [517, 333, 517, 333]))
