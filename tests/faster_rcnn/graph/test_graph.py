"""The exported graph in ONNX Runtime against the PyTorch detector that it was made from."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.config import canvases
from faster_rcnn.detector.detector import DetectorOutput, FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.graph.export import Provider, export_onnx
from faster_rcnn.graph.placement import Misplaced
from faster_rcnn.graph.publish import next_version, publish
from faster_rcnn.graph.verification import (
    TO_PYTORCH,
    Boxes,
    Difference,
    Disagreement,
    compare,
    verify,
)
from tests.faster_rcnn.lively import lively

IMAGES = [Shapes("test")[index].image for index in range(12)]


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> tuple[FasterRCNN, Path]:
    detector = lively("compact")
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(detector, path)
    return detector, path


def canvases_of(detector: FasterRCNN) -> list[tuple[int, int]]:
    return canvases(detector.config.resize, detector.backbone.stride)


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
    }


def test_the_graph_is_one_file_without_control_flow_or_cpu_only_operators(compact: tuple[FasterRCNN, Path]) -> None:
    model = onnx.load(compact[1], load_external_data=False)
    assert not any(one.HasField("data_location") and one.data_location for one in model.graph.initializer)
    operators = {node.op_type for node in model.graph.node}
    assert operators.isdisjoint({"If", "Loop", "Scan", "MaxRoiPool"})
    assert not model.functions
    assert {one.domain: one.version for one in model.opset_import}[""] == 18


def test_proposals_need_nothing_of_the_head(compact: tuple[FasterRCNN, Path]) -> None:
    path = compact[1]
    part = onnx.utils.Extractor(onnx.load(path)).extract_model(
        ["images", "sizes"], ["num_proposals", "proposals", "objectness"]
    )
    head = {name for name, _ in compact[0].named_parameters() if name.startswith("head.")}
    assert head & {one.name for one in onnx.load(path).graph.initializer}
    assert not head & {one.name for one in part.graph.initializer}


def test_the_compact_graph_keeps_its_promises(compact: tuple[FasterRCNN, Path]) -> None:
    detector, path = compact
    verification = verify(path, detector, canvases_of(detector), IMAGES)
    assert verification.batches == 4 * (len(canvases_of(detector)) + 1)
    assert verification.boxes_compared > 5000
    assert verification.images == len(IMAGES) + 5  # four of extreme shapes and a blank one


@pytest.mark.parametrize("provider", ["any", "cpu"])
def test_the_vgg16_graph_with_roi_max_pooling_keeps_its_promises(provider: Provider, tmp_path: Path) -> None:
    detector = lively("vgg16", head_units=64, rpn_channels=64, resize=ResizeRule(96, 160), anchor_scales=(32.0, 64.0))
    path = tmp_path / "model.onnx"
    export_onnx(detector, path, provider=provider)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert ("MaxRoiPool" in operators) == (provider == "cpu")
    assert verify(path, detector, canvases_of(detector), IMAGES, provider=provider).boxes_compared > 5000
    if provider == "cpu":
        with pytest.raises(Misplaced, match="MaxRoiPool"):
            verify(path, detector, canvases_of(detector), IMAGES)


def test_roi_max_pooling_of_a_large_map_is_for_the_cpu(tmp_path: Path) -> None:
    detector = lively("vgg16", resize=ResizeRule(1200, 2000))  # 125 cells a side, 105 can be tabled
    with pytest.raises(ValueError, match=r"up to 105 cells per side, but the resize rule needs 125; .*--provider cpu"):
        export_onnx(detector, tmp_path / "model.onnx")


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
    """What is added outside an image comes from a convolution of the mask with ones; zeros let the padding in."""
    ones = [one for one in model.graph.initializer if one.name.startswith("new_ones")]
    assert ones
    for one in ones:
        one.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(onnx.numpy_helper.to_array(one)), one.name))


def after(name: str, operator: str, **attributes: object) -> Callable[[onnx.ModelProto], None]:
    """Puts an operator between what computes the output `name` and the output."""

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
    """No number for any probability."""
    after("objectness", "Log")(model)
    model.graph.node[-1].output[0] = "logarithm"
    model.graph.node.append(onnx.helper.make_node("Sqrt", ["logarithm"], ["objectness"]))


def reverse_rows(model: onnx.ModelProto) -> None:
    """Detections worst first: the same set of boxes, and not what the contract says."""
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
        (let_padding_in, "against .* alone: (.* boxes have no partner|scores differ by up to)"),
        (reverse_rows, "detections of .*: (scores are not best first|rows past the count are not zero)"),
        (after("scores", "Sqrt"), "scores differ by up to|no partner"),
        (root_of_logarithm, "proposals of .*: a value is not finite"),
        (after("boxes", "Neg"), "detections of .*: a box leaves the image"),
    ],
    ids=["unchanged", "other weights", "padding leaks", "worst first", "other scores", "not finite", "outside"],
)
def test_a_graph_that_does_not_agree_is_refused(
    compact: tuple[FasterRCNN, Path], tmp_path: Path, change: Callable[[onnx.ModelProto], None], complaint: str | None
) -> None:
    detector, path = compact
    changed = tamper(path, tmp_path / "changed.onnx", change)
    if complaint is None:
        verify(changed, detector, [(288, 576), (576, 288)], IMAGES)
    else:
        with pytest.raises(Disagreement, match=complaint):
            verify(changed, detector, [(288, 576), (576, 288)], IMAGES)


def boxes(rows: list[list[float]], scores: list[float], labels: list[int]) -> Boxes:
    return Boxes(np.array(rows, float).reshape(-1, 4), np.array(scores), np.array(labels), cut=0.05)


def test_boxes_are_matched_whatever_their_order() -> None:
    first = boxes([[0, 0, 10, 10], [5, 5, 9, 9]], [0.5, 0.5], [0, 1])
    second = boxes([[5, 5, 9, 9.05], [0, 0, 10, 10]], [0.5, 0.4995], [1, 0])
    difference = compare(first, second, TO_PYTORCH["fp32"])
    assert difference.unmatched == 0
    assert difference.box == pytest.approx(0.05)
    assert difference.score == pytest.approx(0.0005)


def test_another_label_or_a_missing_box_has_no_partner() -> None:
    one = boxes([[0, 0, 10, 10]], [0.9], [0])
    assert compare(one, boxes([[0, 0, 10, 10]], [0.9], [1]), TO_PYTORCH["fp32"]).unmatched == 2
    assert compare(one, boxes([], [], []), TO_PYTORCH["fp32"]).unmatched == 1
    moved = compare(one, boxes([[0, 0, 10, 10.2]], [0.9], [0]), TO_PYTORCH["fp32"])
    assert moved.unmatched == 2
    assert moved.missed_by == pytest.approx(0.2)
    # a box at the score floor may be there in one and not in the other
    assert compare(boxes([[0, 0, 10, 10]], [0.0505], [0]), boxes([], [], []), TO_PYTORCH["fp32"]) == Difference()


def test_a_version_is_published_whole_or_not_at_all(
    compact: tuple[FasterRCNN, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, _ = compact
    arguments = {
        "training": {"command": "a test"}, "measured_on": "shapes/test", "test": Shapes("test", 3), "pictures": IMAGES
    }  # fmt: skip
    folder = publish(detector, tmp_path, "toy", next_version(tmp_path, "toy"), **arguments)
    assert folder == tmp_path / "toy" / "1"
    card = json.loads((folder / "model.json").read_text())
    assert {
        "name", "version", "labels", "canvases", "resize", "score_threshold", "metrics", "training", "opset", "sha256"
    } <= set(card)  # fmt: skip
    assert card["metrics"]["shapes/test"]["pictures"] == 3
    assert card["verification"]["to_alone"]["unmatched"] == 0
    assert next_version(tmp_path, "toy") == 2
    with pytest.raises(FileExistsError, match="is there already; choose another --version"):
        publish(detector, tmp_path, "toy", 1, **arguments)

    def disagree(*_: object) -> None:
        raise Disagreement("boxes differ")

    monkeypatch.setattr("faster_rcnn.graph.publish.verify", disagree)
    with pytest.raises(Disagreement):
        publish(detector, tmp_path, "toy", 2, **arguments)
    files = {"example.jpg", "model.json", "model.onnx", "result.jpg"}
    assert {entry.name for entry in tmp_path.rglob("*")} == {"toy", "1"} | files


def test_answers_are_named_as_the_outputs() -> None:
    assert DetectorOutput._fields == (
        "num_detections", "boxes", "scores", "labels", "num_proposals", "proposals", "objectness"
    )  # fmt: skip
