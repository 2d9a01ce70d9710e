"""Which nodes CUDA would leave to the CPU; the verdicts are those of ONNX Runtime's own partitioning."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, version_converter

from faster_rcnn.graph import placement
from faster_rcnn.graph.cuda_kernels import Kernel, known_kernels, registered_kernels
from faster_rcnn.graph.placement import CpuNode, Misplaced, check_placement, cpu_nodes
from service.engine.providers import CPU, CUDA, pick_provider

STORE = Path(__file__).parents[3] / "model_store"


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table decides, also on a machine that has a GPU."""
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
def test_the_embedded_models_leave_nothing_of_weight_to_the_cpu(name: str) -> None:
    check_placement(STORE / name / "1" / "model.onnx")


@pytest.mark.usefixtures("without_gpu")
def test_max_roi_pool_is_refused_by_name(tmp_path: Path) -> None:
    pool = helper.make_node("MaxRoiPool", ["x", "rois"], ["y"], "pool", pooled_shape=[7, 7], spatial_scale=1 / 16)
    path = write(tmp_path, [pool], {"x": FEATURES, "rois": (TensorProto.FLOAT, ["R", 5])}, "y")
    assert cpu_nodes(path) == [CpuNode("pool", "MaxRoiPool", heavy=True)]
    with pytest.raises(Misplaced, match="MaxRoiPool 'pool'"):
        check_placement(path)


@pytest.mark.usefixtures("without_gpu")
def test_max_pool_is_taken_at_opset_21_and_refused_at_opset_22(tmp_path: Path) -> None:
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
def test_the_types_of_a_kernel_count(tmp_path: Path, opset: int, left: list[str]) -> None:
    """RoiAlign takes float16 from its second definition on; no kernel of the first does."""
    align = helper.make_node("RoiAlign", ["x", "rois", "images"], ["y"], "align", output_height=7, output_width=7)
    half = TensorProto.FLOAT16
    inputs = {"x": (half, ["N", 4, "h", "w"]), "rois": (half, ["R", 4]), "images": (TensorProto.INT64, ["R"])}
    assert [node.operator for node in cpu_nodes(write(tmp_path, [align], inputs, "y", opset))] == left


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(("dims", "heavy"), [(["n"], False), (["n", "m"], True)])
def test_integers_of_a_shape_may_stay_and_a_table_of_them_may_not(tmp_path: Path, dims: list, heavy: bool) -> None:
    """The CUDA provider has no Unique."""
    assert "Unique" not in known_kernels()
    path = write(tmp_path, [helper.make_node("Unique", ["x"], ["y"], "one")], {"x": (TensorProto.INT64, dims)}, "y")
    assert cpu_nodes(path) == [CpuNode("one", "Unique", heavy)]


def test_a_kernel_without_an_end_serves_only_the_definition_that_it_was_written_for() -> None:
    assert [Kernel(12, 21, {}).serves(version) for version in (11, 12, 13, 21, 22)] == [False, True, True, True, False]
    assert [Kernel(12, 2**31 - 1, {}).serves(version) for version in (11, 12, 22)] == [False, True, False]


def test_a_session_tells_which_nodes_it_gives_to_whom() -> None:
    """The way that is taken with a GPU: of a session on the CPU, nothing is left to others, and all to the CPU."""
    path = STORE / "shapes" / "1" / "model.onnx"
    assert placement.assigned(path, CPU, {}) == []
    light = next(node.name for node in onnx.load(path).graph.node if node.op_type == "ScatterND")
    everything = placement.assigned(path, "nobody", {light: False})
    assert {"Conv", "TopK", "NonMaxSuppression", "MatMul"} <= {node.operator for node in everything}
    # of the others nothing is known
    assert {node.name: node.heavy for node in everything if not node.heavy} == {light: False}


@pytest.mark.skipif(pick_provider() != CUDA, reason="needs a GPU: only then does the provider tell its kernels")
def test_the_table_is_the_providers_own() -> None:
    if onnxruntime.__version__ != "1.31.1":
        pytest.skip(f"the table is of 1.31.1, this is {onnxruntime.__version__}")
    assert registered_kernels() == known_kernels()
