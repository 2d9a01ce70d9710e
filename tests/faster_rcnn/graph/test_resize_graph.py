"""The graph with which engines resize images is the one that this project writes."""

import onnx

from faster_rcnn.graph.resize_graph import resize_graph
from service.engine import resize


def test_the_file_is_what_the_script_writes() -> None:
    """Fails after a change of the graph until `python -m faster_rcnn.graph.resize_graph` has been run."""
    assert onnx.load(resize.GRAPH) == resize_graph()
    assert resize.GRAPH.read_bytes() == resize_graph().SerializeToString(deterministic=True)


def test_the_graph_is_valid_and_has_one_product_for_each_axis() -> None:
    onnx.checker.check_model(resize_graph(), full_check=True)
    assert [node.op_type for node in resize_graph().graph.node].count("MatMul") == 2
