"""Drawings: the position of boxes, the wrapping of captions and the order of panels."""

import numpy as np
import pytest
from PIL import Image

from faster_rcnn.evaluation.drawing import EDGE, TRUTH, draw_boxes, rescale, side_by_side, with_caption

GREY = np.full((100, 200, 3), 90, np.uint8)
BOX = np.array([[20, 30, 80, 70]], np.float32)


def test_a_box_is_outlined_and_the_input_image_is_unchanged() -> None:
    before = GREY.copy()
    drawn = np.asarray(draw_boxes(GREY, BOX, [""], [TRUTH], width=1))
    white = np.argwhere((drawn == TRUTH).all(axis=2))
    assert white.min(axis=0).tolist() == [30, 20]
    assert white.max(axis=0).tolist() == [70, 80]
    assert len(white) == 2 * 61 + 2 * 41 - 4  # an outline of one pixel
    assert (before == GREY).all()


def test_a_white_outline_shows_on_a_white_image() -> None:
    white = np.full((100, 200, 3), 255, np.uint8)
    drawn = np.asarray(draw_boxes(white, BOX, [""], [TRUTH], width=1))
    dark = np.argwhere((drawn == EDGE).all(axis=2))
    # Dark edges outside and inside the outline: 63 × 43 and 59 × 39 pixels
    assert len(dark) == (2 * 63 + 2 * 43 - 4) + (2 * 59 + 2 * 39 - 4)
    assert dark.min(axis=0).tolist() == [29, 19]
    assert dark.max(axis=0).tolist() == [71, 81]


@pytest.mark.parametrize(
    ("shape", "scaled"), [((100, 200), (300, 600)), ((1200, 300), (600, 150)), ((3, 3000), (1, 600))]
)
def test_rescaling_returns_the_factor_for_coordinates(shape: tuple[int, int], scaled: tuple[int, int]) -> None:
    image, factor = rescale(np.zeros((*shape, 3), np.uint8), 600)
    assert image.shape[:2] == scaled
    assert factor == 600 / max(shape)


def test_a_long_caption_wraps_below_the_image() -> None:
    image = Image.fromarray(GREY)
    short, long = with_caption(image, "one line"), with_caption(image, "many words " * 12)
    assert (np.asarray(short)[:100] == GREY).all()
    assert short.height > 100
    assert long.height > short.height + 40
    assert long.width == short.width == 200


def test_panels_are_placed_in_a_row() -> None:
    sheet = np.asarray(side_by_side([Image.new("RGB", (10, 20), "red"), Image.new("RGB", (30, 5), "blue")], gap=2))
    assert sheet.shape == (20, 42, 3)
    assert sheet[0, 0].tolist() == [255, 0, 0]
    assert sheet[0, 41].tolist() == [0, 0, 255]
