"""How launches and waits are counted, on graphs small enough to count by hand."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, parser

from faster_rcnn.graph.launches import Launches, count_launches


def written(folder: Path, text: str) -> Path:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]>\n{text}')
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(("images", "expected"), [(1, Launches(16, 5)), (3, Launches(42, 9))])
def test_suppression_is_a_loop_over_images(tmp_path: Path, images: int, expected: Launches) -> None:
    # Relu, Cast and Sub: 3 launches. For each image 13 launches and 2 waits; 2 waits for the call, 1 for the results.
    path = written(
        tmp_path,
        """main (float[N, 5, 4] boxes, float[N, 1, 5] scores) => (float[M, 3] y)
        <int64 most = {9}, float over = {0.5}> {
            positive = Relu(boxes)
            found = NonMaxSuppression(positive, scores, most, over, over)
            numbers = Cast<to = 1>(found)
            y = Sub(numbers, over)
        }""",
    )
    assert count_launches(path, images, 32, 32) == expected


def test_shapes_cost_nothing_and_operators_of_several_kernels_count_as_such(tmp_path: Path) -> None:
    # Where the positive numbers are: Relu 1, Cast 1, NonZero 3 and a wait for their number; Reshape and Shape nothing.
    path = written(
        tmp_path,
        """main (float[N, H, W] x) => (int64[3, M] y, int64[3] shape) <int64[1] all = {-1}> {
            positive = Relu(x)
            marked = Cast<to = 9>(positive)
            y = NonZero(marked)
            shape = Shape(x)
        }""",
    )
    assert count_launches(path, 2, 4, 4) == Launches(5, 2)


def test_the_body_of_a_loop_counts_once_a_round(tmp_path: Path) -> None:
    # Two rounds of MatMul, HardSigmoid, ReduceSum and Cast, a wait each, a copy of the result; the results' wait.
    kind, go, kept = helper.make_tensor_value_info, TensorProto.BOOL, (TensorProto.FLOAT, ["N", 1, 4])
    nodes = [
        helper.make_node("MatMul", ["kept", "m"], ["count"]),
        helper.make_node("HardSigmoid", ["count"], ["next"], alpha=-1.0, beta=1.0),
        helper.make_node("ReduceSum", ["next"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["again"], to=TensorProto.BOOL),
    ]
    body = helper.make_graph(
        nodes, "body",
        [kind("round", TensorProto.INT64, []), kind("go", go, []), kind("kept", *kept)],
        [kind("again", go, []), kind("next", *kept)],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "true", "first"], ["last"], "loop", body=body)], "main",
        [kind("m", TensorProto.FLOAT, ["N", 4, 4]), kind("first", *kept)], [kind("last", *kept)],
        [helper.make_tensor("true", go, [], [True])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    for images in (1, 8):
        assert count_launches(tmp_path / "model.onnx", images, 32, 32) == Launches(2 * 4 + 1, 2 + 1)
