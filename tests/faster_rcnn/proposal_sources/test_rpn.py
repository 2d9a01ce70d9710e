"""Proposals of a trained RPN: their agreement with the detector, and the limits before and after NMS."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.rules import ProposalLimits
from faster_rcnn.evaluation.predictors import torch_predictor
from faster_rcnn.proposal_sources.rpn import EVERY, rpn_regions, uncut_limits
from tests.faster_rcnn.lively import lively


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return lively("compact")


class SmallShapes:
    """Three cuts of an image of `shapes`, one of them long and narrow."""

    labels = Shapes.labels
    cuts = (np.s_[:120, :160], np.s_[:200, :130], np.s_[:30, :260])

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, index: int) -> Sample:
        image = np.ascontiguousarray(Shapes("val")[1].image[self.cuts[index]])
        return Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def size(self, index: int) -> tuple[int, int]:
        height, width = self[index].image.shape[:2]
        return height, width

    def name(self, index: int) -> str:
        return f"cut {index}"


def test_the_proposals_are_those_that_the_detectors_head_classifies(detector: FasterRCNN) -> None:
    dataset = SmallShapes()
    predict = torch_predictor(detector)
    table = rpn_regions(detector, dataset, detector.config.proposals, "rpn:test")
    assert list(table) == ["cut 0", "cut 1", "cut 2"]
    for index in range(len(dataset)):
        regions, proposals = table[dataset.name(index)], predict(dataset[index]).proposals
        assert proposals is not None
        assert len(regions.boxes) > 20
        np.testing.assert_allclose(regions.boxes, proposals, atol=1e-3)
        height, width = dataset.size(index)
        assert (regions.boxes >= 0).all()
        assert (regions.boxes <= [width, height, width, height]).all()
    assert table.made == "rpn:test; 1000 before NMS at 0.7, 100 after it; sides from 4"


def test_every_anchor_enters_nms_under_the_uncut_limits(detector: FasterRCNN) -> None:
    limits = uncut_limits(detector)
    assert (limits.before_nms, limits.after_nms) == (EVERY, 2000)
    table = rpn_regions(detector, SmallShapes(), limits)
    cut = rpn_regions(detector, SmallShapes(), replace(limits, before_nms=50))
    assert "all before NMS" in table.made
    for name, regions in table.items():
        assert len(regions.boxes) > len(cut[name].boxes)
        assert len(cut[name].boxes) <= 50
        # A box that survives among the best fifty survives among all, because NMS compares it only with better ones.
        np.testing.assert_allclose(regions.boxes[: len(cut[name].boxes)], cut[name].boxes, atol=1e-3)


def test_the_uncut_limits_keep_the_nms_threshold_of_the_detector() -> None:
    own = ProposalLimits(100, 50, nms_threshold=0.5, min_side=3.0)
    assert uncut_limits(lively("compact", training_proposals=own), 70) == ProposalLimits(EVERY, 70, 0.5, 3.0)


def test_the_best_12000_anchors_of_each_pyramid_map_enter_nms() -> None:
    with torch.device("meta"):
        detector = FasterRCNN(default_config("resnet50_fpn", ("thing",)))
    limits = uncut_limits(detector, 500)
    assert (limits.before_nms, limits.after_nms, limits.nms_threshold) == (12000, 500, 0.7)


def test_all_anchors_of_small_pyramid_maps_enter_nms() -> None:
    """An image of at most 64 × 128 pixels has at most 2 · 4 · 9 anchors on a map of stride 32, far below the limit."""
    detector = lively("mobilenet_v3_large_fpn", resize=ResizeRule(64, 128))
    limits = uncut_limits(detector)
    table = rpn_regions(detector, SmallShapes(), limits)
    uncut = rpn_regions(detector, SmallShapes(), replace(limits, before_nms=EVERY))
    cut = rpn_regions(detector, SmallShapes(), replace(limits, before_nms=5))
    for name, regions in table.items():
        np.testing.assert_array_equal(regions.boxes, uncut[name].boxes)
        assert len(regions.boxes) > len(cut[name].boxes)
        assert len(cut[name].boxes) <= 3 * 5  # five from each of three maps


def test_a_detector_keeps_its_mode_and_its_parameters(detector: FasterRCNN) -> None:
    detector.train()
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    rpn_regions(detector, SmallShapes(), detector.config.proposals)
    assert detector.training
    detector.eval()
    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_table_of_rpn_proposals_can_be_saved_and_loaded(detector: FasterRCNN, tmp_path: Path) -> None:
    table = rpn_regions(detector, SmallShapes(), detector.config.proposals)
    table.save(tmp_path / "table.npz")
    again = type(table).load(tmp_path / "table.npz")
    np.testing.assert_array_equal(again["cut 0"].boxes, table["cut 0"].boxes)
