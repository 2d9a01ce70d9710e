"""The operators with the same result in PyTorch and in ONNX."""

import torch
import torchvision

from faster_rcnn.detector.operators import EXCLUDED, PADDING, Span, nms, quotient, take_rows, top_k

PROBABILITIES = Span(low=-4, high=1)


def test_equal_scores_keep_their_order() -> None:
    values, places = top_k(torch.tensor([[0.5, 0.9, 0.5, 0.9, 0.5]]), 4, PROBABILITIES)
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.9, 0.5, 0.5]]))
    assert places.tolist() == [[1, 3, 0, 2]]


def test_missing_candidates_are_filled_with_padding() -> None:
    values, places = top_k(torch.tensor([[0.5, 0.9]]), 4, PROBABILITIES)
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.5, PADDING, PADDING]]))
    assert places.tolist() == [[1, 0, 0, 0]]


def test_nms_keeps_the_scores_of_the_survivors_of_each_image() -> None:
    # IoU of the first two boxes: 90 / 100 = 0.9; the third does not overlap them; the fourth is excluded by its score
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [80, 80, 90, 90]]]).repeat(2, 1, 1)
    scores = torch.tensor([[0.8, 0.9, 0.5, EXCLUDED], [0.8, EXCLUDED, 0.5, 0.6]])
    expected = torch.tensor([[EXCLUDED, 0.9, 0.5, EXCLUDED], [0.8, EXCLUDED, EXCLUDED, 0.6]])
    assert torch.equal(nms(boxes, scores, 0.5, 2), expected)  # the best two of the second image's three survivors


def test_nms_agrees_with_torchvision() -> None:
    torch.manual_seed(0)
    corners = torch.rand(1, 200, 2) * 50
    boxes, scores = torch.cat([corners, corners + 5 + torch.rand(1, 200, 2) * 20], dim=2), torch.rand(1, 200)
    kept = torchvision.ops.nms(boxes[0], scores[0], 0.5)
    assert (nms(boxes, scores, 0.5, 200)[0] > 0).nonzero()[:, 0].tolist() == sorted(kept.tolist())


def test_quotient_is_an_integer_division() -> None:
    assert quotient(torch.tensor([0, 5, 6, 7, 2**40]), 6).tolist() == [0, 0, 1, 1, 2**40 // 6]


def test_take_rows_picks_rows_of_each_image() -> None:
    rows = torch.arange(12.0).reshape(2, 3, 2)
    assert take_rows(rows, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
