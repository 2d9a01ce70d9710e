import numpy as np
import onnx
import onnx.utils
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.engine import onnx_subgraph
from service.engine.interface import PROPOSALS
from service.engine.providers import CPU
from service.engine.weights import TYPES, Weights
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


def test_a_graph_without_its_weights_computes_the_same_once_they_are_given(embedded):
    data = (embedded / "model.onnx").read_bytes()
    rest, weights = onnx_subgraph.without_weights(data, 4096, TYPES)
    expected = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(data).graph.initializer
        if len(tensor.raw_data) >= 4096
    }
    assert len(expected) > 10
    assert weights.keys() == expected.keys()
    assert len(rest) < len(data) / 10
    options = onnxruntime.SessionOptions()
    held = Weights(weights, CPU, 0)
    held.give_to(options, [*weights])
    given = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in expected.values()]
    alone = onnxruntime.SessionOptions()
    alone.add_external_initializers([*expected], given)
    feeds = {"images": np.full((1, 288, 288, 3), 90, np.uint8), "sizes": np.array([[288, 288]])}
    whole, shared, external = (
        onnxruntime.InferenceSession(graph, how).run(None, feeds)
        for graph, how in ((data, onnxruntime.SessionOptions()), (rest, options), (rest, alone))
    )
    for one, two, three in zip(whole, shared, external, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("kind", ["float32", "float16", "float64", "int8", "uint8", "int64", "int32"])
def test_weights_of_every_element_type_are_taken_out_with_their_values(kind):
    values = (np.arange(2048) % 100).astype(kind).reshape(4, 512)
    nodes = [helper.make_node("Gather", ["table", "row"], ["y"])]
    element = helper.np_dtype_to_tensor_dtype(values.dtype)
    made = helper.make_graph(
        nodes, "g", [value("row", TensorProto.INT64, [1])], [value("y", element, [1, 512])],
        [numpy_helper.from_array(values, "table")],
    )  # fmt: skip
    data = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    rest, weights = onnx_subgraph.without_weights(data, 2048, TYPES)
    options = onnxruntime.SessionOptions()
    held = Weights(weights, CPU, 0)
    held.give_to(options, ["table"])
    (found,) = onnxruntime.InferenceSession(rest, options).run(None, {"row": np.array([2])})
    np.testing.assert_array_equal(found, values[2:3])


def test_small_weights_and_types_that_numpy_lacks_stay_in_the_graph():
    small = numpy_helper.from_array(np.zeros(2047, np.uint8), "small")
    bfloat = helper.make_tensor("bfloat", TensorProto.BFLOAT16, [2048], bytes(4096), raw=True)
    made = helper.make_graph([], "g", [], [], [small, bfloat])
    data = helper.make_model(made).SerializeToString()
    rest, weights = onnx_subgraph.without_weights(data, 2048, TYPES)
    assert weights == {}
    assert onnx.load_from_string(rest) == onnx.load_from_string(data)
