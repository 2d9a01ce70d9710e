"""Images show what they say: boxes where they are, captions that can be read, panels in their order."""

import numpy as np
import pytest
from PIL import Image

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.drawing import (
    COVERING,
    IDLE,
    PALETTE,
    TRUTH,
    draw_boxes,
    rescale,
    side_by_side,
    with_caption,
)
from faster_rcnn.evaluation.mistakes import Mistake
from faster_rcnn.evaluation.sheets import MISTAKE_SIDE, SIDE, draw_mistake, draw_overview, draw_proposals

GREY = np.full((100, 200, 3), 90, np.uint8)
BOX = np.array([[20, 30, 80, 70]], np.float32)
SAMPLE = Sample(GREY, BOX, np.array([1], np.int64))


def has(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture) == colour).all(axis=2).any())


def test_a_box_is_outlined_at_its_corners_and_the_image_is_not_changed() -> None:
    before = GREY.copy()
    drawn = np.asarray(draw_boxes(GREY, BOX, [""], [TRUTH], width=1))
    white = np.argwhere((drawn == TRUTH).all(axis=2))
    assert white.min(axis=0).tolist() == [30, 20]
    assert white.max(axis=0).tolist() == [70, 80]
    assert len(white) == 2 * 61 + 2 * 41 - 4  # an outline of one pixel
    assert (before == GREY).all()


@pytest.mark.parametrize(
    ("shape", "scaled"), [((100, 200), (300, 600)), ((1200, 300), (600, 150)), ((3, 3000), (1, 600))]
)
def test_an_image_and_its_boxes_are_scaled_alike(shape: tuple[int, int], scaled: tuple[int, int]) -> None:
    image, factor = rescale(np.zeros((*shape, 3), np.uint8), 600)
    assert image.shape[:2] == scaled
    assert factor == 600 / max(shape)


def test_a_caption_stands_below_the_image_in_as_many_lines_as_it_takes() -> None:
    picture = Image.fromarray(GREY)
    short, long = with_caption(picture, "one line"), with_caption(picture, "many words " * 12)
    assert (np.asarray(short)[:100] == GREY).all()
    assert short.height > 100
    assert long.height > short.height + 40
    assert long.width == short.width == 200


def test_panels_stand_in_a_row() -> None:
    sheet = np.asarray(side_by_side([Image.new("RGB", (10, 20), "red"), Image.new("RGB", (30, 5), "blue")], gap=2))
    assert sheet.shape == (20, 42, 3)
    assert sheet[0, 0].tolist() == [255, 0, 0]
    assert sheet[0, 41].tolist() == [0, 0, 255]


def test_proposals_that_cover_an_object_stand_out() -> None:
    idle = np.array([[100, 0, 190, 90]], np.float32)
    assert has(draw_proposals(GREY, SAMPLE, BOX, 1.0), COVERING)
    assert not has(draw_proposals(GREY, SAMPLE, BOX, 1.0), IDLE)
    assert has(draw_proposals(GREY, SAMPLE, idle, 1.0), IDLE)
    nothing_there = Sample(GREY, BOX[:0], np.zeros(0, np.int64))
    assert not has(draw_proposals(GREY, nothing_there, np.concatenate([BOX, idle]), 1.0), COVERING)


def test_an_overview_has_a_panel_for_truth_detections_and_proposals() -> None:
    found = Prediction(BOX, np.array([0.9], np.float32), np.array([1], np.int64))
    two = draw_overview(SAMPLE, found, ("cat", "dog"), 0.5, "a")
    three = draw_overview(SAMPLE, Prediction(BOX, found.scores, found.labels, BOX), ("cat", "dog"), 0.5, "a")
    assert two.width == 2 * SIDE + 6
    assert three.width == 3 * SIDE + 12
    assert has(two, TRUTH)
    assert has(two, PALETTE[1])
    assert not has(draw_overview(SAMPLE, found, ("cat", "dog"), 0.95, "a"), PALETTE[1])


def test_a_mistake_shows_the_box_and_what_it_is_held_against() -> None:
    mistake = Mistake("wrong class", 0, 0, 0.9, BOX[0], "cat 0.90: it is a dog", BOX + 10)
    drawn = draw_mistake(SAMPLE, mistake, "a.jpg")
    assert drawn.width == MISTAKE_SIDE
    assert has(drawn, (255, 60, 60))
    assert has(drawn, TRUTH)
