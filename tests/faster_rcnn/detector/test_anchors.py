"""Anchors: number, shapes and positions."""

import pytest
import torch

from faster_rcnn.detector.anchors import cell_anchors, grid_anchors, inside_image

SCALES, RATIOS = (128.0, 256.0, 512.0), (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [
        (32, 32, 9216),  # 512 × 512 pixels at stride 16: 1024 locations with 9 anchors each
        (40, 40, 14400),  # 640 × 640
        (37, 62, 20646),  # 600 × 1000, the paper's "about 20000"
    ],
)
def test_a_map_has_k_anchors_at_every_location(height: int, width: int, count: int) -> None:
    assert grid_anchors(cell_anchors(SCALES, RATIOS), height, width, 16).shape == (count, 4)


def test_the_nine_anchors_have_the_papers_areas_and_ratios() -> None:
    anchors = cell_anchors(SCALES, RATIOS)
    widths, heights = (anchors[:, 2] - anchors[:, 0]), (anchors[:, 3] - anchors[:, 1])
    torch.testing.assert_close(widths * heights, torch.tensor([128.0**2, 256.0**2, 512.0**2]).repeat(3))
    torch.testing.assert_close(heights / widths, torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(3))


def test_anchors_are_centred_on_their_cell() -> None:
    anchors = grid_anchors(cell_anchors([32], [1.0]), 2, 3, 16)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    # row by row: y is 8 or 24; x is 8, 24 or 40
    assert centres.tolist() == [[8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24]]


def test_anchors_that_cross_the_border_are_not_inside() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 20], [-1, 0, 9, 20], [0, 0, 11, 20], [0, 0, 10, 21]])
    assert inside_image(anchors, torch.tensor([20, 10])).tolist() == [True, False, False, False]


def test_no_anchor_of_512_pixels_lies_inside_an_image_of_512_pixels() -> None:
    """This is why small images need `keep_crossing`: the square anchor would have to be centred on a cell's corner."""
    anchors = grid_anchors(cell_anchors([512], RATIOS), 32, 32, 16)
    assert not inside_image(anchors, torch.tensor([512, 512])).any()
