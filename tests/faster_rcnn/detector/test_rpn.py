"""The RPN's head."""

import torch
import torch.nn.functional as F

from faster_rcnn.detector.rpn import RPNHead, foreground_margin


def test_the_sigmoid_of_the_margin_is_the_foreground_probability_of_the_softmax() -> None:
    scores = torch.randn(3, 500, 2) * 4
    found = torch.sigmoid(foreground_margin(scores))
    torch.testing.assert_close(found, torch.softmax(scores, dim=2)[..., 1], rtol=0, atol=2e-5)


def test_the_head_has_the_papers_number_of_outputs_per_location() -> None:
    """2k scores and 4k deltas: (4 + 2) × 9 = 54 outputs per location (section 3.1.1)."""
    head = RPNHead(512, 512, 9)
    assert head.cls_score.out_channels + head.bbox_pred.out_channels == 54
    assert head.conv.kernel_size == (3, 3)


def test_channels_are_in_the_order_of_the_reference_code() -> None:
    head = RPNHead(4, 8, 9)
    features = torch.randn(2, 4, 5, 6)
    scores, deltas = head(features)
    hidden = F.relu(head.conv(features))
    raw_scores, raw_deltas = head.cls_score(hidden), head.bbox_pred(hidden)
    image, y, x, anchor = 1, 3, 2, 7
    row = (y * 6 + x) * 9 + anchor  # rows first, then columns, then anchors, as in `grid_anchors`
    torch.testing.assert_close(scores[image, row], raw_scores[image, [anchor, 9 + anchor], y, x])
    torch.testing.assert_close(deltas[image, row], raw_deltas[image, 4 * anchor : 4 * anchor + 4, y, x])
