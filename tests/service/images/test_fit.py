import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.images.fit import Canvas, Geometry, fit, to_original

GEOMETRY = Geometry(((320, 448), (448, 320), (384, 384)), min_size=320, max_size=448)
SIDES = st.integers(1, 30_000)


def test_the_shorter_side_determines_the_scale_unless_the_longer_becomes_too_long():
    assert fit(640, 480, GEOMETRY) == (320, 427, (320, 448))  # x 320/480
    assert fit(1000, 500, GEOMETRY) == (224, 448, (320, 448))  # x 448/1000, since x 320/500 would make 640
    assert fit(480, 640, GEOMETRY) == (427, 320, (448, 320))


@given(SIDES, SIDES)
@pytest.mark.contract("2.1")
def test_every_image_fits_on_a_canvas_and_keeps_its_proportions(width, height):
    h, w, (H, W) = fit(width, height, GEOMETRY)
    assert 1 <= h <= H
    assert 1 <= w <= W
    assert h == 320 or w == 320 or max(h, w) == 448
    scale = min(320 / min(width, height), 448 / max(width, height))
    assert abs(w - width * scale) <= max(0.5, 1 - width * scale) + 1e-9  # rounded, but at least 1


@given(SIDES, SIDES)
@pytest.mark.contract("2.2")
def test_the_smallest_canvas_that_holds_the_image_is_chosen(width, height):
    h, w, chosen = fit(width, height, GEOMETRY)
    holding = [H * W for H, W in GEOMETRY.canvases if h <= H and w <= W]
    assert chosen[0] * chosen[1] == min(holding)


def test_an_image_that_no_canvas_holds_raises_an_error():
    with pytest.raises(ValueError, match="no canvas"):
        fit(100, 300, Geometry(((320, 448),), 320, 448))


# --- mapping boxes back ----------------------------------------------------------------------------------------------


def canvas_of(width: int, height: int) -> Canvas:
    h, w, size = fit(width, height, GEOMETRY)
    return Canvas(np.zeros((h, w, 3), np.uint8), size, width, height)


def test_boxes_are_scaled_back_on_each_axis():
    canvas = canvas_of(1000, 500)  # resized to 448 x 224
    boxes = np.array([[0, 0, 448, 224], [112, 56, 224, 112]], dtype=np.float32)
    np.testing.assert_allclose(to_original(boxes, canvas), [[0, 0, 1000, 500], [250, 125, 500, 250]], rtol=1e-6)


@given(SIDES, SIDES, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_mapping_boxes_to_the_canvas_and_back_returns_the_same_boxes(width, height, shares):
    canvas = canvas_of(width, height)
    h, w = canvas.pixels.shape[:2]
    (left, right), (top, bottom) = sorted(shares[:2]), sorted(shares[2:])
    original = np.array([[left * width, top * height, right * width, bottom * height]])
    shown = (original * np.array([w / width, h / height] * 2)).astype(np.float32)
    back = to_original(shown, canvas)
    np.testing.assert_allclose(back, original, rtol=1e-5, atol=1e-4)
    assert (back >= 0).all()
    assert (back <= [width, height, width, height]).all()


@pytest.mark.contract("2.3")
def test_a_box_beyond_the_edge_is_clipped():
    canvas = canvas_of(640, 480)
    boxes = np.array([[-5, -5, 500, 400]], dtype=np.float32)
    assert to_original(boxes, canvas).tolist() == [[0, 0, 640, 480]]
