"""The graph with which the service checks a device is the one that this project writes."""

import onnx

from faster_rcnn.graph.probe_graph import probe_graph
from service.engine import probe


def test_the_file_is_what_the_script_writes() -> None:
    """Fails after a change of the graph until `python -m faster_rcnn.graph.probe_graph` has been run."""
    assert onnx.load(probe.GRAPH) == probe_graph()
    assert probe.GRAPH.read_bytes() == probe_graph().SerializeToString(deterministic=True)


def test_the_graph_has_the_kernels_that_a_detector_needs() -> None:
    assert [node.op_type for node in probe_graph().graph.node] == ["Conv", "Gemm", "TopK", "NonMaxSuppression"]
    onnx.checker.check_model(probe_graph(), full_check=True)
