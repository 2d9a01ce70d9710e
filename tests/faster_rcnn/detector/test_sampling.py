"""Labelling and sampling of anchors and proposals."""

import pytest
import torch

from faster_rcnn.detector.anchors import cell_anchors, grid_anchors
from faster_rcnn.detector.sampling import (
    AnchorSampling,
    ProposalSampling,
    label_anchors,
    sample_anchors,
    sample_proposals,
)

RULE = AnchorSampling()


def everywhere(anchors: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(anchors), dtype=torch.bool)


def test_anchors_are_labelled_by_overlap() -> None:
    object_box = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    anchors = torch.tensor(
        [
            [0.0, 0.0, 100.0, 80.0],  # IoU 0.8: positive
            [0.0, 0.0, 100.0, 50.0],  # IoU 0.5: ignored
            [0.0, 0.0, 100.0, 29.0],  # IoU 0.29: negative
            [200.0, 200.0, 300.0, 300.0],  # IoU 0: negative
        ]
    )
    assert label_anchors(anchors, everywhere(anchors), object_box, RULE).labels.tolist() == [1, -1, 0, 0]


def test_the_best_anchors_of_an_object_are_positive_even_if_the_overlap_is_low() -> None:
    objects = torch.tensor([[0.0, 0.0, 100.0, 100.0], [500.0, 500.0, 600.0, 600.0]])
    anchors = torch.tensor(
        [
            [0.0, 0.0, 100.0, 20.0],  # IoU 0.2 with the first object, its highest
            [0.0, 80.0, 100.0, 100.0],  # also IoU 0.2: all ties are positive
            [0.0, 0.0, 100.0, 10.0],  # IoU 0.1: negative
            [500.0, 500.0, 600.0, 590.0],  # IoU 0.9 with the second
        ]
    )
    targets = label_anchors(anchors, everywhere(anchors), objects, RULE)
    assert targets.labels.tolist() == [1, 1, 0, 1]
    assert targets.objects.tolist() == [0, 0, 0, 1]


def test_unusable_anchors_are_ignored_even_if_they_overlap_most() -> None:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])
    targets = label_anchors(anchors, torch.tensor([False, True]), anchors[:1], RULE)
    assert targets.labels.tolist() == [-1, 1]


def test_an_object_that_no_anchor_touches_has_no_positive_anchor() -> None:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    targets = label_anchors(anchors, everywhere(anchors), torch.tensor([[50.0, 50.0, 60.0, 60.0]]), RULE)
    assert targets.labels.tolist() == [0]


def test_an_image_without_objects_has_only_negative_anchors() -> None:
    anchors = grid_anchors(cell_anchors([32], [1.0]), 20, 20, 16)
    targets = label_anchors(anchors, everywhere(anchors), torch.zeros(0, 4), RULE)
    positive, negative = sample_anchors(targets.labels, RULE)
    assert (len(positive), len(negative)) == (0, 256)


@pytest.mark.parametrize(
    ("positives", "negatives", "sampled"),
    [
        (500, 5000, (128, 128)),  # "a ratio of up to 1:1"
        (10, 5000, (10, 246)),  # "we pad the mini-batch with negative ones"
        (500, 20, (128, 20)),  # at most half of the sample is positive
        (0, 5000, (0, 256)),
    ],
)
def test_up_to_256_anchors_are_sampled(positives: int, negatives: int, sampled: tuple[int, int]) -> None:
    labels = torch.cat([torch.ones(positives), torch.zeros(negatives), -torch.ones(300)]).to(torch.int64)
    labels = labels[torch.randperm(len(labels))]
    positive, negative = sample_anchors(labels, RULE)
    assert (len(positive), len(negative)) == sampled
    assert labels[positive].eq(1).all()
    assert labels[negative].eq(0).all()
    assert len(set(positive.tolist() + negative.tolist())) == sum(sampled)


def test_a_quarter_of_the_regions_is_foreground() -> None:
    torch.manual_seed(0)
    objects = torch.tensor([[100.0, 100.0, 200.0, 200.0]])
    near = objects + torch.rand(300, 4) * 10  # IoU above 0.5
    far = torch.rand(900, 1).mul(50) + torch.tensor([[300.0, 300.0, 400.0, 400.0]])  # IoU 0
    regions = sample_proposals(torch.cat([near, far]), objects, torch.tensor([3]), ProposalSampling())
    assert regions.labels.shape == (128,)
    assert regions.labels.eq(3).sum() == 32  # 25 % of 128
    assert regions.labels.eq(0).sum() == 96
    torch.testing.assert_close(regions.targets[:32], objects.expand(32, 4))


def test_the_objects_themselves_are_candidates_for_regions() -> None:
    objects = torch.tensor([[100.0, 100.0, 200.0, 200.0]])
    regions = sample_proposals(torch.tensor([[0.0, 0.0, 5.0, 5.0]]), objects, torch.tensor([1]), ProposalSampling())
    torch.testing.assert_close(regions.boxes[0], objects[0])
    assert regions.labels[:2].tolist() == [1, 0]
    assert regions.labels[2:].eq(-1).all()  # there are no more candidates


def test_regions_of_an_image_without_objects_are_background() -> None:
    proposals = torch.rand(200, 2).repeat(1, 2) + torch.tensor([0.0, 0.0, 9.0, 9.0])
    regions = sample_proposals(proposals, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ProposalSampling())
    assert regions.labels.eq(0).all()
