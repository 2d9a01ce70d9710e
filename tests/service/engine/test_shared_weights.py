"""Graphs that refer to weights in `model.onnx`: the values come back, and every other reference is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.engine import onnx_subgraph
from service.engine.shared_weights import Weight, weights, with_weights
from tests.service import graphs

MODEL = graphs.graph()
PORTABLE = MODEL.SerializeToString()
SHARES = next(one.name for one in MODEL.graph.initializer if list(one.dims) == [3, 4])  # 12 floats, 48 bytes
OFFSET = PORTABLE.index(np.array(graphs.SHARES, np.float32).tobytes())


def test_the_weights_of_a_model_are_found_in_its_file() -> None:
    found = weights(PORTABLE)
    assert found[SHARES] == Weight(offset=OFFSET, length=48, elements=12, element=TensorProto.FLOAT)
    for one in MODEL.graph.initializer:
        weight = found[one.name]
        assert PORTABLE[weight.offset : weight.offset + weight.length] == one.raw_data


@pytest.mark.contract("4.8")
def test_a_reference_is_replaced_by_the_values() -> None:
    shared = graphs.referring(PORTABLE, MODEL, SHARES)
    whole = onnx.load_from_string(with_weights(shared, PORTABLE))
    tensor = next(one for one in whole.graph.initializer if one.name == SHARES)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), np.array(graphs.SHARES, np.float32))
    assert not tensor.external_data
    onnx.checker.check_model(whole, full_check=True)
    onnx_subgraph.refuse_external_data(whole.SerializeToString())


def test_a_graph_without_references_stays_as_it_is() -> None:
    assert with_weights(PORTABLE, PORTABLE) == PORTABLE


def test_the_file_is_ordinary_onnx_that_other_programs_open_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(PORTABLE)
    (tmp_path / "model.cuda.onnx").write_bytes(graphs.referring(PORTABLE, MODEL, SHARES))
    feeds = {"images": np.full((1, 64, 96, 3), 51, np.uint8), "sizes": np.array([[64, 96]], np.int64)}
    first, second = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, feeds)
        for name in ("model.onnx", "model.cuda.onnx")
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


HUGE = "9" * 30


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"location": "other.onnx"}, "in another file than model.onnx"),
        ({"location": "../1/model.onnx"}, "in another file than model.onnx"),
        ({"location": "/etc/passwd"}, "in another file than model.onnx"),
        ({"location": "MODEL.ONNX"}, "in another file than model.onnx"),
        ({"location": ""}, "in another file than model.onnx"),
        ({"location": None}, "in another file than model.onnx"),
        ({"offset": None}, "needs an offset and a length"),
        ({"length": None}, "needs an offset and a length"),
        ({"checksum": "0"}, "and nothing else"),
        ({"offset": "-1"}, "does not refer to the values of a weight"),
        ({"length": "-48"}, "does not refer to the values of a weight"),
        ({"offset": str(OFFSET + 4)}, "does not refer to the values of a weight"),
        ({"offset": str(len(PORTABLE))}, "does not refer to the values of a weight"),
        ({"offset": HUGE}, "does not refer to the values of a weight"),
        ({"length": HUGE}, "does not refer to the values of a weight"),
        ({"length": "44"}, "does not refer to the values of a weight"),
        ({"length": "0"}, "does not refer to the values of a weight"),
        ({"offset": "0", "length": str(len(PORTABLE))}, "does not refer to the values of a weight"),
        ({"offset": f" {OFFSET}"}, "does not refer to the values of a weight"),
        ({"offset": "０" + str(OFFSET)}, "does not refer to the values of a weight"),  # a full-width zero
        ({"offset": "1e2"}, "does not refer to the values of a weight"),
    ],
)
@pytest.mark.contract("4.8")
def test_any_other_reference_is_refused(changes: dict[str, str | None], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        with_weights(graphs.referring(PORTABLE, MODEL, SHARES, **changes), PORTABLE)
    assert "passwd" not in str(refused.value)
    assert repr(SHARES) in str(refused.value)


Change = Callable[[onnx.ModelProto, onnx.TensorProto], None]


def with_shape(*shape: int) -> Change:
    def change(_: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
        tensor.ClearField("dims")
        tensor.dims.extend(shape)

    return change


def as_integers(_: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    tensor.data_type = TensorProto.INT32


def with_values_too(_: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    tensor.raw_data = bytes(48)


def with_a_key_twice(_: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    tensor.external_data.add(key="offset", value="0")


def read_twice(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    second = model.graph.initializer.add()
    second.CopyFrom(tensor)
    second.name = "second"


def external_constant(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))


def external_in_a_loop(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    body = helper.make_graph([], "body", [], [], [tensor])
    for _ in range(30):  # as deep as protobuf's own limit allows
        body = helper.make_graph([helper.make_node("Loop", [], ["x"], body=body)], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", [], ["looped"], body=body))


def external_in_a_function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(helper.make_function("mine", "F", [], ["y"], [constant], model.opset_import))


def external_and_sparse(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    places = numpy_helper.from_array(np.arange(12), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, places, [100]))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (with_shape(3, 4), None),
        (with_shape(12), None),  # the same values in another shape
        (with_shape(3, 5), "of its type and size"),
        (with_shape(-3, -4), "of its type and size"),
        (with_shape(2**62, 2**62), "of its type and size"),
        (with_shape(3, 4, *[1] * 15), "of its type and size"),
        (as_integers, "of its type and size"),
        (with_values_too, "and nothing else"),
        (with_a_key_twice, "'offset' twice"),
        (read_twice, "'second' refer to the same bytes"),
        (external_constant, "stored outside the file"),
        (external_in_a_loop, "stored outside the file"),
        (external_in_a_function, "stored outside the file"),
        (external_and_sparse, "stored outside the file"),
    ],
)
@pytest.mark.contract("4.8")
def test_a_reference_must_suit_the_tensor_and_stand_where_weights_stand(change: Change, complaint: str | None) -> None:
    model = onnx.load_model_from_string(graphs.referring(PORTABLE, MODEL, SHARES))
    change(model, next(one for one in model.graph.initializer if one.name == SHARES))
    if complaint is None:
        with_weights(model.SerializeToString(), PORTABLE)
    else:
        with pytest.raises(ValueError, match=complaint):
            with_weights(model.SerializeToString(), PORTABLE)


def test_a_million_dimensions_take_no_time() -> None:
    """Their product would have 60 million bits."""
    model = onnx.load_model_from_string(PORTABLE)
    with_shape(*[2**62] * 1_000_000)(model, next(one for one in model.graph.initializer if one.name == SHARES))
    assert SHARES not in weights(model.SerializeToString())


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_give_a_graph_or_a_value_error(data: st.DataObject) -> None:
    """Of the portable graph, or of the one that refers to it. A graph never grows by more than the portable one."""
    shared = graphs.referring(PORTABLE, MODEL, SHARES)
    files = [bytearray(PORTABLE), bytearray(shared)]
    for _ in range(data.draw(st.integers(1, 3))):
        file = files[data.draw(st.integers(0, 1))]
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    portable, graph = (bytes(file) for file in files)
    try:
        whole = with_weights(graph, portable)
    except ValueError:
        return
    assert len(whole) <= len(graph) + len(portable) + 100
