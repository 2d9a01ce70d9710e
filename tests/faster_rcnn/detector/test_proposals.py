"""The proposal layer, compared with torchvision's."""

import pytest
import torch
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead

from faster_rcnn.detector.anchors import cell_anchors, grid_anchors
from faster_rcnn.detector.boxes import decode
from faster_rcnn.detector.proposals import propose
from faster_rcnn.detector.rules import ProposalLimits


def random_rpn_output(n: int, h: int = 20, w: int = 28) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(n)
    anchors = grid_anchors(cell_anchors((32, 64, 128), (0.5, 1.0, 2.0)), h, w, 16)
    return torch.randn(n, len(anchors)) * 2, torch.randn(n, len(anchors), 4) * 0.3, anchors


@pytest.mark.parametrize("n", [1, 2, 5])
def test_proposals_agree_with_torchvision(n: int) -> None:
    logits, deltas, anchors = random_rpn_output(n)
    sizes = torch.randint(150, 320, (n, 2))
    theirs = RegionProposalNetwork(
        AnchorGenerator(), RPNHead(8, 9), 0.7, 0.3, 256, 0.5,
        pre_nms_top_n={"training": 1000, "testing": 1000}, post_nms_top_n={"training": 100, "testing": 100},
        nms_thresh=0.7,
    ).eval()  # fmt: skip
    # torchvision drops small boxes after choosing the best 1000, and `propose` before. So no box may be small here.
    theirs.min_size = 1e-3
    boxes = decode(deltas, anchors)
    expected_boxes, expected_scores = theirs.filter_proposals(
        boxes, logits.reshape(-1, 1), [tuple(size) for size in sizes.tolist()], [len(anchors)]
    )
    limits = ProposalLimits(1000, 100, 0.7, min_side=1e-3)
    found = propose(logits, deltas, anchors, torch.ones(n, len(anchors), dtype=torch.bool), sizes, limits)
    for image in range(n):
        count = int(found.number[image])
        assert count == len(expected_boxes[image])
        torch.testing.assert_close(found.boxes[image, :count], expected_boxes[image])
        torch.testing.assert_close(found.objectness[image, :count], expected_scores[image])
        assert found.boxes[image, count:].eq(0).all()
        assert found.objectness[image, count:].eq(0).all()


def test_small_and_invalid_anchors_are_dropped_before_the_best_are_chosen() -> None:
    anchors = torch.tensor([[0.0, 0, 100, 100], [200, 200, 204, 204], [300, 0, 400, 100], [0, 300, 100, 400]])
    margins = torch.tensor([[0.2, 0.9, 0.8, 0.7]]).logit()
    valid = torch.tensor([[True, True, False, True]])
    limits = ProposalLimits(before_nms=2, after_nms=3, min_side=16)
    found = propose(margins, torch.zeros(1, 4, 4), anchors, valid, torch.tensor([[1000, 1000]]), limits)
    # The second is small and the third invalid, so neither counts as one of the two candidates for NMS.
    assert found.number.tolist() == [2]
    torch.testing.assert_close(found.objectness, torch.tensor([[0.7, 0.2, 0.0]]))


def test_an_overlap_above_the_threshold_is_suppressed() -> None:
    anchors = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 71], [0, 0, 100, 69]])  # IoU 0.71 and 0.69 with the first
    margins = torch.tensor([[0.9, 0.8, 0.7]]).logit()
    found = propose(
        margins, torch.zeros(1, 3, 4), anchors, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[500, 500]]),
        ProposalLimits(100, 100),
    )  # fmt: skip
    # The second is suppressed. The third's IoU with it is 0.97, but a suppressed box does not suppress others.
    torch.testing.assert_close(found.objectness[0, :3], torch.tensor([0.9, 0.7, 0.0]))


def test_an_image_without_proposals_does_not_affect_the_others() -> None:
    logits, deltas, anchors = random_rpn_output(2)
    valid = torch.ones(2, len(anchors), dtype=torch.bool)
    valid[0] = False
    found = propose(logits, deltas, anchors, valid, torch.tensor([[320, 448]] * 2), ProposalLimits(500, 50))
    assert found.number.tolist() == [0, 50]


def test_margins_are_ranked_even_if_their_sigmoids_are_equal() -> None:
    """sigmoid(18) and sigmoid(19) are both 1 in float32; the better anchor still suppresses the other."""
    anchors = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 99]])
    margins = torch.tensor([[18.0, 19.0]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    found = propose(margins, torch.zeros(1, 2, 4), anchors, valid, torch.tensor([[500, 500]]), ProposalLimits(9, 9))
    assert found.number.tolist() == [1]
    assert found.boxes[0, 0].tolist() == [0, 0, 100, 99]


def test_the_least_likely_anchor_is_still_a_candidate() -> None:
    anchors = torch.tensor([[0.0, 0, 100, 100]])
    found = propose(
        torch.tensor([[-1000.0]]), torch.zeros(1, 1, 4), anchors, torch.ones(1, 1, dtype=torch.bool),
        torch.tensor([[500, 500]]), ProposalLimits(9, 9),
    )  # fmt: skip
    assert found.number.tolist() == [1]
    assert 0 < float(found.objectness[0, 0]) < 1e-12


def test_proposals_of_a_pyramid_agree_with_torchvision() -> None:
    """Each map keeps its best anchors and suppresses overlaps; some maps have fewer anchors than the limit."""
    torch.manual_seed(4)
    sizes = torch.tensor([[256, 320], [200, 310]])
    maps = [(32.0, 64, 80, 4), (64.0, 32, 40, 8), (128.0, 16, 20, 16), (256.0, 4, 5, 64)]
    parts = [grid_anchors(cell_anchors((scale,), (0.5, 1.0, 2.0)), h, w, stride) for scale, h, w, stride in maps]
    levels, anchors = [len(part) for part in parts], torch.cat(parts)
    logits, deltas = torch.randn(2, len(anchors)) * 2, torch.randn(2, len(anchors), 4) * 0.3
    theirs = RegionProposalNetwork(
        AnchorGenerator(), RPNHead(8, 3), 0.7, 0.3, 256, 0.5,
        pre_nms_top_n={"training": 300, "testing": 300}, post_nms_top_n={"training": 150, "testing": 150},
        nms_thresh=0.7,
    ).eval()  # fmt: skip
    theirs.min_size = 1e-3
    expected_boxes, expected_scores = theirs.filter_proposals(
        decode(deltas, anchors), logits.reshape(-1, 1), [tuple(size) for size in sizes.tolist()], levels
    )
    limits = ProposalLimits(300, 150, 0.7, min_side=1e-3)
    found = propose(logits, deltas, anchors, torch.ones(2, len(anchors), dtype=torch.bool), sizes, limits, levels)
    for image in range(2):
        count = int(found.number[image])
        assert count == len(expected_boxes[image]) == 150
        torch.testing.assert_close(found.boxes[image], expected_boxes[image])
        torch.testing.assert_close(found.objectness[image], expected_scores[image])


def test_boxes_of_different_maps_do_not_suppress_each_other() -> None:
    anchors = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 99], [0, 0, 100, 98]])
    arguments = (
        torch.tensor([[0.9, 0.8, 0.7]]).logit(), torch.zeros(1, 3, 4), anchors, torch.ones(1, 3, dtype=torch.bool),
        torch.tensor([[500, 500]]), ProposalLimits(100, 100),
    )  # fmt: skip
    assert propose(*arguments).number.tolist() == [1]
    assert propose(*arguments, levels=(1, 2)).number.tolist() == [2]
    # with one candidate per map, the third anchor is dropped: it is the second of its map
    assert propose(*arguments[:5], ProposalLimits(1, 100, nms_threshold=1.0), (1, 2)).number.tolist() == [2]
