"""Sheets: the panels of a drawing, and the colours of boxes in them."""

import numpy as np
from PIL import Image

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.drawing import COVERING, IDLE, PALETTE, TRUTH, WRONG
from faster_rcnn.evaluation.mistakes import Mistake
from faster_rcnn.evaluation.sheets import MISTAKE_SIDE, SIDE, draw_mistake, draw_overview, draw_proposals

GREY = np.full((100, 200, 3), 90, np.uint8)
BOX = np.array([[20, 30, 80, 70]], np.float32)
SAMPLE = Sample(GREY, BOX, np.array([1], np.int64))


def has(drawing: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(drawing) == colour).all(axis=2).any())


def test_proposals_that_cover_an_object_stand_out() -> None:
    idle = np.array([[100, 0, 190, 90]], np.float32)
    assert has(draw_proposals(GREY, SAMPLE, BOX, 1.0), COVERING)
    assert not has(draw_proposals(GREY, SAMPLE, BOX, 1.0), IDLE)
    assert has(draw_proposals(GREY, SAMPLE, idle, 1.0), IDLE)
    without_objects = Sample(GREY, BOX[:0], np.zeros(0, np.int64))
    assert not has(draw_proposals(GREY, without_objects, np.concatenate([BOX, idle]), 1.0), COVERING)


def test_an_overview_has_a_panel_for_truth_detections_and_proposals() -> None:
    found = Prediction(BOX, np.array([0.9], np.float32), np.array([1], np.int64))
    two = draw_overview(SAMPLE, found, ("cat", "dog"), 0.5, "a")
    three = draw_overview(SAMPLE, Prediction(BOX, found.scores, found.labels, BOX), ("cat", "dog"), 0.5, "a")
    assert two.width == 2 * SIDE + 6
    assert three.width == 3 * SIDE + 12
    assert has(two, TRUTH)
    assert has(two, PALETTE[1])
    assert not has(draw_overview(SAMPLE, found, ("cat", "dog"), 0.95, "a"), PALETTE[1])


def test_a_mistake_shows_its_box_and_the_boxes_that_its_caption_mentions() -> None:
    mistake = Mistake("wrong class", 0, 0, 0.9, BOX[0], "cat 0.90: the object is labelled dog", BOX + 10)
    drawn = draw_mistake(SAMPLE, mistake, "a.jpg")
    assert drawn.width == MISTAKE_SIDE
    assert has(drawn, WRONG)
    assert has(drawn, TRUTH)
