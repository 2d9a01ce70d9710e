"""The exported file: its inputs, outputs and operators, and the limits of RoI max pooling."""

from pathlib import Path

import onnx
import onnxruntime
import pytest

import faster_rcnn
from faster_rcnn.detector.detector import DetectorOutput, FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.graph.export import export_onnx
from tests.faster_rcnn.lively import lively


@pytest.mark.contract("1.1")
def test_the_graph_has_the_inputs_and_outputs_of_the_contract(compact: tuple[FasterRCNN, Path]) -> None:
    session = onnxruntime.InferenceSession(str(compact[1]), providers=["CPUExecutionProvider"])
    assert {one.name: (one.type, one.shape) for one in session.get_inputs()} == {
        "images": ("tensor(uint8)", ["N", "H", "W", 3]),
        "sizes": ("tensor(int64)", ["N", 2]),
    }
    assert {one.name: (one.type, one.shape) for one in session.get_outputs()} == {
        "num_detections": ("tensor(int64)", ["N"]),
        "boxes": ("tensor(float)", ["N", 100, 4]),
        "scores": ("tensor(float)", ["N", 100]),
        "labels": ("tensor(int64)", ["N", 100]),
        "num_proposals": ("tensor(int64)", ["N"]),
        "proposals": ("tensor(float)", ["N", 100, 4]),
        "objectness": ("tensor(float)", ["N", 100]),
        "left_out": ("tensor(float)", ["N"]),
    }


def test_the_graph_is_one_file_without_control_flow_or_cpu_only_operators(compact: tuple[FasterRCNN, Path]) -> None:
    model = onnx.load(compact[1], load_external_data=False)
    assert not any(one.HasField("data_location") and one.data_location for one in model.graph.initializer)
    operators = {node.op_type for node in model.graph.node}
    assert operators.isdisjoint({"If", "Loop", "Scan", "MaxRoiPool"})
    assert not model.functions
    assert {one.domain: one.version for one in model.opset_import}[""] == 18


def test_the_graph_does_not_tell_where_it_was_made(compact: tuple[FasterRCNN, Path]) -> None:
    """PyTorch notes the source lines of every node, with the paths of their files."""
    data = compact[1].read_bytes()
    for word in (str(Path(faster_rcnn.__file__).parent), ".py", "stack_trace", "site-packages"):
        assert word.encode() not in data


@pytest.mark.contract("1.4")
def test_proposals_do_not_depend_on_the_head(compact: tuple[FasterRCNN, Path]) -> None:
    path = compact[1]
    part = onnx.utils.Extractor(onnx.load(path)).extract_model(
        ["images", "sizes"], ["num_proposals", "proposals", "objectness"]
    )
    head = {name for name, _ in compact[0].named_parameters() if name.startswith("head.")}
    assert head & {one.name for one in onnx.load(path).graph.initializer}
    assert not head & {one.name for one in part.graph.initializer}


def test_roi_max_pooling_of_a_large_map_can_only_be_exported_for_the_cpu(tmp_path: Path) -> None:
    detector = lively("vgg16", resize=ResizeRule(1200, 2000))  # 125 cells a side, 105 is the limit of the portable form
    with pytest.raises(ValueError, match=r"up to 105 cells per side, but the resize rule needs 125; .*--provider cpu"):
        export_onnx(detector, tmp_path / "model.onnx")


def test_the_fields_of_an_answer_are_named_like_the_outputs() -> None:
    assert DetectorOutput._fields == (
        "num_detections", "boxes", "scores", "labels", "num_proposals", "proposals", "objectness", "left_out"
    )  # fmt: skip
