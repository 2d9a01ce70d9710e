"""A graph may be as inexact as the model that it was exported from, and not much more."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.detector import DetectorOutput
from faster_rcnn.graph.agreement import Answer, References, Tolerances
from faster_rcnn.graph.comparison import Difference, Disagreement
from faster_rcnn.graph.export import export_onnx
from faster_rcnn.graph.rounding import judge, one_colour
from faster_rcnn.graph.verification import TO_ALONE, TO_PYTORCH, Verification, verify
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector
from tests.faster_rcnn.lively import lively_torchvision

TOLERANCES = Tolerances(TO_PYTORCH["fp32"], TO_ALONE["fp32"])
CANVASES = [(160, 160)]
IMAGES = [Shapes("test")[index].image for index in range(2)]


def found(moved: int = 0, by: float = 5.0) -> DetectorOutput:
    """100 boxes in a row, as detections and as proposals; the first `moved` lie `by` pixels lower."""
    corners = np.array([[20.0 * n, 0, 20 * n + 10, 10] for n in range(100)])
    corners[:moved, 1::2] += by
    scores = np.linspace(0.9, 0.1, 100)
    count = np.int64(100)
    values: Any = (count, corners, scores, np.zeros(100, np.int64), count, corners, scores, np.float32(0))
    return DetectorOutput(*values)


def judged(
    graph: list[DetectorOutput], pytorch: list[DetectorOutput], alone: list[DetectorOutput] | None = None
) -> Any:
    answers = [Answer(place, f"image {place}", one) for place, one in enumerate(graph)]
    references = References(pytorch, graph if alone is None else alone, 0.05, blanks=frozenset())
    return judge(answers, references, [found()] * len(graph), TOLERANCES)["detections"]


def test_a_graph_as_inexact_as_pytorch_is_accepted_with_the_figures() -> None:
    # image 0: PyTorch moves 4 boxes, the graph 6; each moved box leaves two without a partner
    rounding = judged([found(6), found()], [found(4), found()])
    assert (rounding.boxes, rounding.pytorch.unmatched, rounding.graph.unmatched) == (200, 8, 12)
    assert rounding.allowed == 17  # 2 * 8 + 0.5 % of 200
    assert (rounding.steady, rounding.allowed_steady) == (0, 4)  # 8 / 2 + 0.5 % of 100


def test_a_graph_that_is_worse_than_pytorch_by_more_than_the_factor_is_refused() -> None:
    # 2 * 9 boxes of the graph's 200 and PyTorch's 200 have no partner, 2 * 8 + 0.5 % of 200 may have none
    with pytest.raises(Disagreement, match=r"18 of 400; 17 are allowed, because between .* 8 of 400 have none\)"):
        judged([found(9), found()], [found(4), found()])


def test_a_graph_that_differs_where_pytorch_does_not_is_refused() -> None:
    # the same 2 * 6 boxes in all as above, but half of them in the image that rounding does not change: 6 of 4
    with pytest.raises(Disagreement, match=r"6 of 200; 4 are allowed; counted only where all boxes of PyTorch"):
        judged([found(3), found(3)], [found(4), found()])


def test_a_graph_that_differs_from_itself_more_than_rounding_explains_is_refused() -> None:
    with pytest.raises(Disagreement, match=r"against ONNX alone: 10 boxes .* 8 of 400 have none"):
        judged([found(4), found()], [found(4), found()], alone=[found(4), found(5)])


@pytest.mark.parametrize(
    ("pytorch", "words"),
    [
        (4, "this model is sensitive to rounding, so"),
        (0, r"this model is not sensitive to rounding, but .* \(image 3 differs\)"),
    ],
)
def test_the_remark_calls_only_a_model_sensitive_that_rounding_changes(pytorch: int, words: str) -> None:
    # 2 images of 100 boxes; each moved box counts in either answer
    rounding = {"detections": judged([found(), found()], [found(pytorch), found()])}
    verification = Verification(2, 2, 200, Difference(), Difference(), rounding, "image 3 differs")
    figures = f"detections: {2 * pytorch} of 400 for PyTorch in float32, 0 of 400 for the graph"
    assert re.match(f"{words}.*{figures}", verification.remark())
    assert verification.to_dict()["why_float64"] == "image 3 differs"


def test_an_image_of_one_colour_is_recognised() -> None:
    assert one_colour(np.full((3, 4, 3), [1, 2, 3], np.uint8))
    assert not one_colour(np.arange(36, dtype=np.uint8).reshape(3, 4, 3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchvisionDetector, Path]:
    """A model with calibrated random weights, and its graph."""
    torch.manual_seed(3)
    model = torchvision.models.get_model(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        weights=None, weights_backbone=None, num_classes=5, min_size=96, max_size=160,
    )  # fmt: skip
    detector = TorchvisionDetector(lively_torchvision(model))
    path = tmp_path_factory.mktemp("rounding") / "model.onnx"
    export_onnx(detector, path)
    return detector, path


def other_anchor(model: Any) -> None:
    model.rpn.anchor_generator.cell_anchors[0][4] += 2.0


def other_box_nms(model: Any) -> None:
    model.roi_heads.nms_thresh = 0.6


def other_rpn_nms(model: Any) -> None:
    model.rpn.nms_thresh = 0.75


def swapped_classes(model: Any) -> None:
    predictor = model.roi_heads.box_predictor
    for values in (predictor.cls_score.weight, predictor.cls_score.bias):
        values[[2, 3]] = values[[3, 2]].clone()


def half_a_pixel(model: Any) -> None:
    decode = model.roi_heads.box_coder.decode
    model.roi_heads.box_coder.decode = lambda *given: decode(*given) + 0.5


def unchanged(model: Any) -> None:
    pass


@pytest.mark.parametrize(
    "change", [unchanged, other_anchor, other_box_nms, other_rpn_nms, swapped_classes, half_a_pixel]
)
@pytest.mark.contract("1.3")
def test_a_graph_of_another_model_is_refused(
    exported: tuple[TorchvisionDetector, Path], change: Callable[[Any], None]
) -> None:
    """The reference is changed instead of the graph, which needs one export only."""
    detector, path = exported
    other = copy.deepcopy(detector)
    with torch.no_grad():
        change(other.model)
    if change is unchanged:
        assert verify(path, other, CANVASES, IMAGES, provider="cpu").boxes_compared > 500
    else:
        with pytest.raises(Disagreement, match="in float64 alone"):
            verify(path, other, CANVASES, IMAGES, provider="cpu")


@pytest.mark.contract("1.2")
def test_a_graph_that_lets_padding_in_is_refused(exported: tuple[TorchvisionDetector, Path], tmp_path: Path) -> None:
    """The graph no longer blanks the pixels around an image; its features still are."""
    detector, path = exported
    model = onnx.load(path)
    blanked = next(node for node in model.graph.node if node.op_type == "Where")
    pixels = blanked.input[1]
    del blanked.input[:]
    blanked.op_type, blanked.input[:] = "Identity", [pixels]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(Disagreement, match="in float64 alone"):
        verify(tmp_path / "model.onnx", detector, CANVASES, IMAGES, provider="cpu")
