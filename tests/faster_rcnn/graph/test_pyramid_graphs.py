"""The graphs of feature pyramids keep the promises too; `test_graph.py` has those of single maps."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torchvision
from torchvision.models.resnet import Bottleneck, ResNet

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.proposals import ProposalLimits
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.graph.export import export_onnx
from faster_rcnn.graph.verification import verify
from tests.faster_rcnn.lively import lively

IMAGES = [Shapes("test")[index].image for index in range(6)]


@pytest.mark.parametrize(("backbone", "roi_aligns"), [("resnet50_fpn", 1), ("mobilenet_v3_large_fpn", 0)])
def test_a_pyramids_graph_keeps_its_promises(
    backbone: str, roi_aligns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one block a layer: what the others would add is time
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: ResNet(Bottleneck, [1, 1, 1, 1]))
    detector = lively(
        backbone, head_units=64, rpn_channels=64, resize=ResizeRule(96, 160), proposals=ProposalLimits(200, 60)
    )
    path = tmp_path / "model.onnx"
    export_onnx(detector, path)
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert operators.keys().isdisjoint({"If", "Loop", "Scan", "MaxRoiPool", "SplitToSequence"})
    assert operators["NonMaxSuppression"] == 2  # one for the proposals of all maps, one for the detections
    assert operators["RoiAlign"] == roi_aligns  # one for all maps; MobileNet's regions come from one map
    verification = verify(path, detector, [(96, 160), (160, 96)], IMAGES)
    assert verification.boxes_compared > 1000
