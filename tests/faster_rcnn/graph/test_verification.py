"""Correct graphs pass the verification; graphs with a deliberate error do not."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torchvision
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vgg import VGG, make_layers

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.config import canvases
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.rules import ProposalLimits
from faster_rcnn.graph.comparison import Difference, Disagreement
from faster_rcnn.graph.export import Provider, export_onnx
from faster_rcnn.graph.placement import Misplaced
from faster_rcnn.graph.verification import Verification, verify
from tests.faster_rcnn.lively import lively

IMAGES = [Shapes("test")[index].image for index in range(12)]
THIN_VGG16 = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 512, "M"]  # channels of its layers


def canvases_of(detector: FasterRCNN) -> list[tuple[int, int]]:
    return canvases(detector.resize, detector.stride)


@pytest.mark.contract("1.2", "1.3")
def test_the_compact_graph_passes_the_verification(compact: tuple[FasterRCNN, Path]) -> None:
    detector, path = compact
    verification = verify(path, detector, canvases_of(detector), IMAGES)
    assert verification.batches == 4 * (len(canvases_of(detector)) + 1)
    assert verification.boxes_compared > 5000
    assert verification.pictures == len(IMAGES) + 5  # four of extreme shapes, and a blank one


@pytest.mark.parametrize("provider", ["any", "cpu"])
@pytest.mark.contract("1.2", "1.3")
def test_the_vgg16_graph_with_roi_max_pooling_passes_the_verification(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an eighth of the channels: all the layers, in a fraction of the time
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights: VGG(make_layers(THIN_VGG16)))
    detector = lively("vgg16", head_units=64, rpn_channels=64, resize=ResizeRule(96, 160), anchor_scales=(32.0, 64.0))
    path = tmp_path / "model.onnx"
    export_onnx(detector, path, provider=provider)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert ("MaxRoiPool" in operators) == (provider == "cpu")
    assert verify(path, detector, canvases_of(detector), IMAGES, provider=provider).boxes_compared > 5000
    if provider == "cpu":
        with pytest.raises(Misplaced, match="MaxRoiPool"):
            verify(path, detector, canvases_of(detector), IMAGES)


@pytest.mark.parametrize(("backbone", "roi_aligns"), [("resnet50_fpn", 1), ("mobilenet_v3_large_fpn", 0)])
@pytest.mark.contract("1.2", "1.3")
def test_the_graph_of_a_pyramid_passes_the_verification(
    backbone: str, roi_aligns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one block per layer; more of them would only take more time
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
    verification = verify(path, detector, [(96, 160), (160, 96)], IMAGES[:6])
    assert verification.boxes_compared > 1000


def tamper(path: Path, out: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, out)
    return out


def nudge(name: str, by: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for one in model.graph.initializer:
            if one.name == name:
                one.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one) + np.float32(by), name))
                return
        raise KeyError(name)

    return change


def let_padding_in(model: onnx.ModelProto) -> None:
    """Replaces by zeros the ones with which the mask is convolved, so that nothing outside an image is blanked."""
    ones = [one for one in model.graph.initializer if one.name.startswith("new_ones")]
    assert ones
    for one in ones:
        one.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(onnx.numpy_helper.to_array(one)), one.name))


def after(name: str, operator: str, **attributes: object) -> Callable[[onnx.ModelProto], None]:
    """Inserts an operator before the output `name`."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for place, output in enumerate(node.output):
                if output == name:
                    node.output[place] = f"{name}_before"
            for place, given in enumerate(node.input):
                if given == name:
                    node.input[place] = f"{name}_before"
        model.graph.node.append(onnx.helper.make_node(operator, [f"{name}_before"], [name], **attributes))

    return change


def root_of_logarithm(model: onnx.ModelProto) -> None:
    """The square root of the logarithm of a probability is NaN."""
    after("objectness", "Log")(model)
    model.graph.node[-1].output[0] = "logarithm"
    model.graph.node.append(onnx.helper.make_node("Sqrt", ["logarithm"], ["objectness"]))


def reverse_rows(model: onnx.ModelProto) -> None:
    """Detections worst first: the same set of boxes, in the wrong order."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(99, -1, -1), "backwards"))
    for name in ("boxes", "scores", "labels"):
        after(name, "Gather", axis=1)(model)
        model.graph.node[-1].input.append("backwards")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (nudge("head.cls_score.weight", 0.0), None),
        (
            nudge("head.bbox_pred.weight", 0.01),
            "against PyTorch alone: .* no partner within 0.1 pixels and 0.001 of score, the worst misses",
        ),
        (let_padding_in, "against .* alone: (.* boxes .* have no partner|scores differ by up to)"),
        (reverse_rows, "detections of .*: (scores are not best first|rows past the count are not zero)"),
        (after("scores", "Sqrt"), "scores differ by up to|no partner"),
        (root_of_logarithm, "proposals of .*: a value is not finite"),
        (after("boxes", "Neg"), "detections of .*: a box leaves the image"),
    ],
    ids=["unchanged", "other weights", "padding leaks", "worst first", "other scores", "not finite", "outside"],
)
@pytest.mark.contract("1.2", "1.3")
def test_a_graph_that_does_not_agree_is_refused(
    compact: tuple[FasterRCNN, Path], tmp_path: Path, change: Callable[[onnx.ModelProto], None], complaint: str | None
) -> None:
    detector, path = compact
    detector = copy.copy(detector)
    detector.resize = ResizeRule(96, 192)  # small images; the graph takes any size
    changed = tamper(path, tmp_path / "changed.onnx", change)
    if complaint is None:
        verify(changed, detector, [(96, 192), (192, 96)], IMAGES)
    else:
        with pytest.raises(Disagreement, match=complaint):
            verify(changed, detector, [(96, 192), (192, 96)], IMAGES)


def test_an_infinite_distance_is_none_in_the_card() -> None:
    apart = Difference(box=0.1, score=0.2, unmatched=1, missed_by=float("inf"), boxes=100)
    written = Verification(1, 4, 100, to_pytorch=apart, to_alone=Difference()).to_dict()
    assert written["to_pytorch"] == {"box": 0.1, "score": 0.2, "unmatched": 1, "missed_by": None, "boxes": 100}
    assert written["to_alone"]["missed_by"] == 0.0
    assert written["pictures"] == 1
