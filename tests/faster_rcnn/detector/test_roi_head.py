"""The RoI head's detections and its target normalisation."""

import math

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads

from faster_rcnn.detector.roi_head import detect
from faster_rcnn.detector.rules import DetectionLimits, TargetNormalisation

# torchvision multiplies by weights; TargetNormalisation divides by standard deviations: 1 / 0.1 and 1 / 0.2
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def test_detections_agree_with_torchvision() -> None:
    torch.manual_seed(3)
    N, P, C = 3, 80, 6
    sizes = torch.tensor([[300, 400], [200, 410], [288, 288]])
    corners = torch.rand(N, P, 2) * 200
    proposals = torch.cat([corners, corners + 20 + torch.rand(N, P, 2) * 120], dim=2)
    scores, deltas = torch.randn(N, P, C + 1) * 2, torch.randn(N, P, C, 4)
    count = torch.tensor([P, 50, 0])
    theirs = RoIHeads(
        None, None, None, 0.5, 0.5, 128, 0.25, WEIGHTS, score_thresh=0.05, nms_thresh=0.5, detections_per_img=100
    )
    limits = DetectionLimits(candidates=N * P * C)
    found = detect(scores, deltas, proposals, count, sizes, limits, TargetNormalisation())
    for image in range(N):
        real = int(count[image])
        with_background = torch.cat([torch.zeros(real, 1, 4), deltas[image, :real]], dim=1)
        boxes, expected_scores, labels = (
            one[0]
            for one in theirs.postprocess_detections(
                scores[image, :real],
                with_background.flatten(1),
                [proposals[image, :real]],
                [tuple(sizes[image].tolist())],
            )
        )
        kept = int(found.number[image])
        assert kept == len(boxes)
        torch.testing.assert_close(found.boxes[image, :kept], boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.scores[image, :kept], expected_scores)
        assert (found.labels[image, :kept] + 1).tolist() == labels.tolist()  # torchvision counts the background as 0
        assert found.boxes[image, kept:].eq(0).all()


def test_boxes_of_different_classes_do_not_suppress_each_other() -> None:
    proposals = torch.tensor([[[10.0, 10, 60, 60], [11, 11, 61, 61]]])
    scores = torch.tensor([[[0.0, 5, 0], [0, 0, 4]]])
    count, sizes = torch.tensor([2]), torch.tensor([[100, 100]])
    deltas = torch.zeros(1, 2, 2, 4)
    found = detect(scores, deltas, proposals, count, sizes, DetectionLimits(), TargetNormalisation())
    assert found.number.tolist() == [2]
    assert found.labels[0, :2].tolist() == [0, 1]


def test_normalised_targets_have_zero_mean_and_unit_variance() -> None:
    deltas = torch.tensor([[0.1, 0.0, 0.5, 1.0], [0.3, 0.4, 0.1, 0.0]])
    # means 0.2, 0.2, 0.3, 0.5; each value is one standard deviation away
    rule = TargetNormalisation((0.2, 0.2, 0.3, 0.5), (0.1, 0.2, 0.2, 0.5))
    torch.testing.assert_close(rule.apply(deltas), torch.tensor([[-1.0, -1, 1, 1], [1, 1, -1, -1]]))
    torch.testing.assert_close(rule.undo(rule.apply(deltas)), deltas)


def test_detections_undo_the_normalisation_of_the_targets() -> None:
    proposals = torch.tensor([[[10.0, 10, 30, 30]]])
    rule = TargetNormalisation((0.5, 0.0, 0.0, 0.0), (0.1, 0.1, 0.2, 0.2))
    found = detect(
        torch.tensor([[[0.0, 9.0]]]), torch.tensor([[[[2.0, 0, 0, 0]]]]), proposals, torch.tensor([1]),
        torch.tensor([[100, 100]]), DetectionLimits(), rule,
    )  # fmt: skip
    # dx = 2 * 0.1 + 0.5 = 0.7 of the width 20: 14 pixels to the right
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([24.0, 10, 44, 30]))


def scores_that_give(*probabilities: float) -> torch.Tensor:
    """Class scores [1, P, 2] of one class, whose probabilities after the softmax are these."""
    return torch.tensor([[[0.0, math.log(one / (1 - one))] for one in probabilities]])


@pytest.mark.contract("1.6")
@pytest.mark.parametrize(
    ("limits", "number", "left_out"),
    [
        # Five boxes with scores 0.9, 0.8, 0.7, 0.6 and 0.01. The second overlaps the first, so NMS removes it: IoU is
        # 49 · 49 / (2 · 2500 - 49 · 49) = 0.92. The last is below the floor of 0.05.
        (DetectionLimits(), 3, 0.0),  # 0.9, 0.7 and 0.6: no limit was reached
        (DetectionLimits(detections=3), 3, 0.0),  # as many as there are
        (DetectionLimits(detections=2), 2, 0.6),
        (DetectionLimits(detections=1), 1, 0.7),
        (DetectionLimits(candidates=4), 3, 0.0),
        (DetectionLimits(candidates=3), 2, 0.6),  # the candidate with 0.6 does not enter NMS
        (DetectionLimits(candidates=3, detections=1), 1, 0.7),
        (DetectionLimits(candidates=1), 1, 0.8),  # it would have been removed, which cannot be known
    ],
)
def test_the_best_score_that_a_limit_left_out_is_known(limits: DetectionLimits, number: int, left_out: float) -> None:
    corners = [(10, 10), (11, 11), (100, 10), (10, 100), (100, 100)]
    proposals = torch.tensor([[[x, y, x + 50.0, y + 50.0] for x, y in corners]])
    scores = scores_that_give(0.9, 0.8, 0.7, 0.6, 0.01)
    deltas, count, sizes = torch.zeros(1, 5, 1, 4), torch.tensor([5]), torch.tensor([[200, 200]])
    found = detect(scores, deltas, proposals, count, sizes, limits, TargetNormalisation())
    assert found.number.tolist() == [number]
    torch.testing.assert_close(found.left_out, torch.tensor([left_out]))
    assert found.boxes.shape == (1, limits.detections, 4)
