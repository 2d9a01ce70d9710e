import numpy as np
import onnx
import onnx.utils
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.engine import onnx_subgraph
from service.engine.interface import PROPOSALS
from tests.service import graphs

value = helper.make_tensor_value_info


def test_the_extracted_graph_equals_that_of_the_onnx_package(embedded):
    data = (embedded / "model.onnx").read_bytes()
    cut = onnx.load_from_string(onnx_subgraph.extract(data, list(PROPOSALS)))
    onnx.checker.check_model(cut)
    expected = onnx.utils.Extractor(onnx.load_from_string(data)).extract_model(["images", "sizes"], list(PROPOSALS))
    assert [node.SerializeToString() for node in cut.graph.node] == [
        node.SerializeToString() for node in expected.graph.node
    ]
    assert {tensor.name for tensor in cut.graph.initializer} == {tensor.name for tensor in expected.graph.initializer}
    assert [output.name for output in cut.graph.output] == list(PROPOSALS)
    assert len(cut.graph.node) < len(onnx.load_from_string(data).graph.node)


def test_the_extracted_graph_computes_the_same_proposals():
    data = graphs.graph(work=3).SerializeToString()
    cut = onnx_subgraph.extract(data, ["objectness"])
    assert len(cut) < len(data) / 2  # the matrix of the RoI head is removed
    feeds = {
        "images": np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), dtype=np.uint8),
        "sizes": np.array([[64, 96]] * 3),
    }
    whole, part = (onnxruntime.InferenceSession(model).run(["objectness"], feeds)[0] for model in (data, cut))
    np.testing.assert_array_equal(whole, part)


def test_nodes_that_only_a_branch_uses_are_kept():
    branch = {
        word: helper.make_graph([helper.make_node(op, ["x", "outer"], [word])], word, [], [value(word, 1, [1])])
        for word, op in (("then", "Add"), ("else", "Sub"))
    }
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["outer"]),
        helper.make_node("If", ["which"], ["y"], then_branch=branch["then"], else_branch=branch["else"]),
        helper.make_node("Mul", ["x", "three"], ["unused"]),
    ]
    constants = [numpy_helper.from_array(np.array([n], np.float32), name) for n, name in ((2, "two"), (3, "three"))]
    inputs = [value("x", TensorProto.FLOAT, [1]), value("which", TensorProto.BOOL, [])]
    outputs = [value("y", TensorProto.FLOAT, [1]), value("unused", TensorProto.FLOAT, [1])]
    made = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    cut = onnx_subgraph.extract(model.SerializeToString(), ["y"])
    assert [node.op_type for node in onnx.load_from_string(cut).graph.node] == ["Mul", "If"]
    assert [tensor.name for tensor in onnx.load_from_string(cut).graph.initializer] == ["two"]
    feeds = {"x": np.array([5], np.float32), "which": np.array(True)}
    assert onnxruntime.InferenceSession(cut).run(None, feeds)[0].tolist() == [15]  # 5 + 2 * 5


def test_a_missing_output_is_named():
    with pytest.raises(ValueError, match="no output nonsense"):
        onnx_subgraph.extract(graphs.graph().SerializeToString(), ["nonsense"])


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, b"hello world", b"\x3a\xff\xff\xff\xff\x0f"])
def test_bytes_that_are_not_a_model_are_refused(data):
    with pytest.raises(ValueError, match="not an ONNX model"):
        onnx_subgraph.extract(data, ["y"])


def test_a_tensor_stored_in_another_file_is_refused():
    model = graphs.graph()
    onnx_subgraph.refuse_external_data(model.SerializeToString())
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(ValueError, match="outside the file"):
        onnx_subgraph.refuse_external_data(model.SerializeToString())
