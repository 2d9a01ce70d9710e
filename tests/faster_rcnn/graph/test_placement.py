"""Which nodes would fall back to the CPU under CUDA; the verdicts agree with ONNX Runtime's own partitioning."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter

from faster_rcnn.graph import placement
from faster_rcnn.graph.cuda_kernels import known_kernels
from faster_rcnn.graph.placement import CpuNode, Misplaced, check_placement, cpu_nodes
from service.engine.providers import CPU

STORE = Path(__file__).parents[3] / "model_store"


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the list of kernels, even on a machine that has a GPU."""
    monkeypatch.setattr(placement, "pick_provider", lambda: CPU)


def write(folder: Path, nodes: list[onnx.NodeProto], inputs: dict[str, tuple], output: str, opset: int = 18) -> Path:
    given = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
    made = [onnx.ValueInfoProto(name=output)]
    model = helper.make_model(
        helper.make_graph(nodes, "test", given, made), opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )
    path = folder / f"opset_{opset}.onnx"
    onnx.save(model, path)
    return path


FEATURES = (TensorProto.FLOAT, ["N", 4, "h", "w"])


@pytest.mark.parametrize("name", ["shapes", "bccd"])
@pytest.mark.contract("1.5")
def test_the_embedded_models_leave_only_shape_arithmetic_to_the_cpu(name: str) -> None:
    check_placement(STORE / name / "1" / "model.onnx")


@pytest.mark.usefixtures("without_gpu")
def test_max_roi_pool_is_refused_by_name(tmp_path: Path) -> None:
    pool = helper.make_node("MaxRoiPool", ["x", "rois"], ["y"], "pool", pooled_shape=[7, 7], spatial_scale=1 / 16)
    path = write(tmp_path, [pool], {"x": FEATURES, "rois": (TensorProto.FLOAT, ["R", 5])}, "y")
    assert cpu_nodes(path) == [CpuNode("pool", "MaxRoiPool", heavy=True)]
    with pytest.raises(Misplaced, match="MaxRoiPool 'pool'"):
        check_placement(path)


@pytest.mark.usefixtures("without_gpu")
def test_a_refusal_by_a_list_of_another_version_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "99.0.0")
    pool = helper.make_node("MaxRoiPool", ["x", "rois"], ["y"], "pool", pooled_shape=[7, 7], spatial_scale=1 / 16)
    path = write(tmp_path, [pool], {"x": FEATURES, "rois": (TensorProto.FLOAT, ["R", 5])}, "y")
    with pytest.raises(Misplaced, match=r"MaxRoiPool 'pool'.*99\.0\.0 is installed.*write the list again"):
        check_placement(path)


@pytest.mark.usefixtures("without_gpu")
def test_max_pool_has_a_cuda_kernel_at_opset_21_and_none_at_opset_22(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["pooled"], ["y"], "relu"),
    ]
    path = write(tmp_path, nodes, {"x": FEATURES}, "y")
    for opset, left in ((18, []), (21, []), (22, [CpuNode("pool", "MaxPool", heavy=True)])):
        onnx.save(version_converter.convert_version(onnx.load(path), opset), tmp_path / "converted.onnx")
        assert cpu_nodes(tmp_path / "converted.onnx") == left, opset


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(("opset", "left"), [(10, ["RoiAlign"]), (16, [])])
def test_a_kernel_supports_only_the_types_that_it_lists(tmp_path: Path, opset: int, left: list[str]) -> None:
    """RoiAlign accepts float16 from its second definition on; the kernel of the first does not."""
    align = helper.make_node("RoiAlign", ["x", "rois", "images"], ["y"], "align", output_height=7, output_width=7)
    half = TensorProto.FLOAT16
    inputs = {"x": (half, ["N", 4, "h", "w"]), "rois": (half, ["R", 4]), "images": (TensorProto.INT64, ["R"])}
    assert [node.operator for node in cpu_nodes(write(tmp_path, [align], inputs, "y", opset))] == left


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(("dims", "heavy"), [(["n"], False), (["n", "m"], True)])
def test_a_list_of_integers_may_be_computed_on_the_cpu_and_a_matrix_may_not(
    tmp_path: Path, dims: list, heavy: bool
) -> None:
    """The CUDA provider has no kernel for Unique."""
    assert "Unique" not in known_kernels()
    path = write(tmp_path, [helper.make_node("Unique", ["x"], ["y"], "one")], {"x": (TensorProto.INT64, dims)}, "y")
    assert cpu_nodes(path) == [CpuNode("one", "Unique", heavy)]


@pytest.mark.usefixtures("without_gpu")
def test_the_bodies_of_loops_are_checked_too(tmp_path: Path) -> None:
    """A body sees the tensors around it: `x` is a matrix, so Unique, which CUDA lacks, is heavy; Relu it has."""
    kind, vector = helper.make_tensor_value_info, (TensorProto.FLOAT, ["n"])
    nodes = [
        helper.make_node("Unique", ["x"], ["values"], "unique"),
        helper.make_node("Relu", ["kept"], ["next"], "relu"),
        helper.make_node("Identity", ["go"], ["again"], "again"),
    ]
    body = helper.make_graph(
        nodes, "body",
        [kind("round", TensorProto.INT64, []), kind("go", TensorProto.BOOL, []), kind("kept", *vector)],
        [kind("again", TensorProto.BOOL, []), kind("next", *vector)],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["", "go_on", "first"], ["y"], "loop", body=body)
    inputs = {"x": (TensorProto.INT64, ["n", "m"]), "go_on": (TensorProto.BOOL, []), "first": vector}
    assert cpu_nodes(write(tmp_path, [loop], inputs, "y")) == [CpuNode("unique", "Unique", heavy=True)]


def test_a_session_says_which_nodes_it_gives_to_other_providers() -> None:
    """The path that is used with a GPU. A session on the CPU runs every node on the CPU."""
    path = STORE / "shapes" / "1" / "model.onnx"
    assert placement.assigned(path, CPU) == []
    everything = placement.assigned(path, "nobody")
    assert {"Conv", "TopK", "NonMaxSuppression", "MatMul"} <= {node.operator for node in everything if node.heavy}
    light = {node.operator for node in everything if not node.heavy}
    assert {"Shape", "Squeeze"} <= light
    assert light.isdisjoint({"Conv", "TopK", "NonMaxSuppression", "ScatterND", "Softmax"})


def test_nodes_that_the_optimiser_made_are_heavy_only_if_they_compute_more_than_shapes(tmp_path: Path) -> None:
    """A transpose before Shape becomes a Gather of the shape; a product and a sum become one Gemm."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["moved"], "transpose", perm=[0, 2, 3, 1]),
        helper.make_node("Shape", ["moved"], ["y"], "shape"),
        helper.make_node("MatMul", ["rows", "weight"], ["product"], "matmul"),
        helper.make_node("Add", ["product", "bias"], ["z"], "add"),
    ]
    inputs = {"x": FEATURES, "rows": (TensorProto.FLOAT, ["M", 4])}
    path = write(tmp_path, nodes, inputs, "y")
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name="z"))
    for name, shape in (("weight", (4, 5)), ("bias", (5,))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, path)
    found = {node.operator: node for node in placement.assigned(path, "nobody")}
    assert found.keys() == {"Shape", "Gather", "Gemm"}
    assert {node.name for node in found.values()}.isdisjoint({"transpose", "matmul", "add"})
    assert {operator: node.heavy for operator, node in found.items()} == {
        "Shape": False, "Gather": False, "Gemm": True
    }  # fmt: skip
