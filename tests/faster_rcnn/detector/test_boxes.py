"""Boxes and their deltas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from faster_rcnn.detector.boxes import clip_to_sizes, decode, encode, sides_at_least

corner = st.floats(-500, 1500, width=32)
side = st.floats(1, 1000, width=32)
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


def test_a_box_twice_as_wide_has_dw_of_ln2() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    wider = torch.tensor([[-5.0, 0.0, 15.0, 10.0]])  # same centre, width 10 -> 20
    torch.testing.assert_close(encode(wider, anchor), torch.tensor([[0.0, 0.0, math.log(2), 0.0]]))


def test_a_box_moved_by_half_its_height_has_dy_of_a_half() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    lower = torch.tensor([[0.0, 10.0, 10.0, 30.0]])
    torch.testing.assert_close(encode(lower, anchor), torch.tensor([[0.0, 0.5, 0.0, 0.0]]))


@given(st.lists(st.tuples(box, box), min_size=1, max_size=20))
def test_decode_is_the_inverse_of_encode(pairs: list[tuple[list[float], list[float]]]) -> None:
    boxes = torch.tensor([one for one, _ in pairs])
    anchors = torch.tensor([other for _, other in pairs])
    # growth is limited to 1000 / 16, so only boxes within that limit can be restored
    growth = (boxes[:, 2:] - boxes[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    usable = (growth < 1000 / 16).all(dim=1)
    again = decode(encode(boxes, anchors), anchors)
    torch.testing.assert_close(again[usable], boxes[usable], rtol=1e-3, atol=0.05)


@given(st.lists(st.tuples(box, box), min_size=1, max_size=20))
def test_encode_and_decode_agree_with_torchvision(pairs: list[tuple[list[float], list[float]]]) -> None:
    boxes = torch.tensor([one for one, _ in pairs])
    anchors = torch.tensor([other for _, other in pairs])
    theirs = BoxCoder((1.0, 1.0, 1.0, 1.0))
    deltas = theirs.encode_single(boxes, anchors)
    torch.testing.assert_close(encode(boxes, anchors), deltas, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(decode(deltas, anchors), theirs.decode_single(deltas, anchors), rtol=1e-4, atol=1e-2)


def test_a_box_without_area_is_refused_and_its_row_is_named() -> None:
    boxes = torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 9]])
    with pytest.raises(ValueError, match="box 1 has no area"):
        encode(boxes, torch.tensor([[0.0, 0, 5, 5]]).expand(2, 4))


def test_growth_is_limited() -> None:
    decoded = decode(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    torch.testing.assert_close(decoded[:, 2:] - decoded[:, :2], torch.tensor([[1000.0, 1000.0]]))


def test_boxes_are_clipped_to_the_size_of_their_own_image() -> None:
    boxes = torch.tensor([[-5.0, -5, 900, 900], [10, 20, 30, 40]]).repeat(2, 1, 1)
    sizes = torch.tensor([[100, 200], [25, 15]])
    clipped = clip_to_sizes(boxes, sizes)
    for image, size in enumerate(sizes.tolist()):
        torch.testing.assert_close(clipped[image], clip_boxes_to_image(boxes[image], tuple(size)))


def test_sides_at_least_checks_both_sides() -> None:
    boxes = torch.tensor([[0.0, 0, 16, 16], [0, 0, 15.9, 30], [0, 0, 30, 15.9]])
    assert sides_at_least(boxes, 16).tolist() == [True, False, False]
