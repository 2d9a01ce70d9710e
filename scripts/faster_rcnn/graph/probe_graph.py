"""Writes `service/engine/probe.onnx`, the graph with which the service checks a device at start:

    python -m faster_rcnn.graph.probe_graph

The service cannot make it, because it does not import `onnx`. Everything but the numbers of top-k and NMS is an input,
so the file holds no data.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from service.engine import probe

OPSET = 18  # of the detectors
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def probe_graph() -> onnx.ModelProto:
    """One node of each kind that `service.engine.probe` checks, without any connection between them."""
    given = probe.inputs()
    inputs = [helper.make_tensor_value_info(name, FLOAT, value.shape) for name, value in given.items()]
    outputs = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(value.dtype),
            ["rows", 3] if name == "kept" else value.shape,  # only a run tells how many boxes NMS keeps
        )
        for name, value in probe.expected(given).items()
    ]
    nodes = [
        helper.make_node("Conv", ["image", "filters"], ["convolution"], "convolution", pads=[1, 1, 1, 1]),
        helper.make_node("Gemm", ["left", "right"], ["product"], "product"),
        helper.make_node("TopK", ["scores", "K"], ["best", "places"], "top-k"),
        helper.make_node("NonMaxSuppression", ["boxes", "confidence", "most", "threshold"], ["kept"], "NMS"),
    ]
    constants = [
        helper.make_tensor("K", INT64, [1], [probe.BEST]),
        helper.make_tensor("most", INT64, [1], [2 * probe.PAIRS]),
        helper.make_tensor("threshold", FLOAT, [1], [probe.IOU_THRESHOLD]),
    ]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def main() -> None:
    model = probe_graph()
    onnx.checker.check_model(model, full_check=True)
    probe.GRAPH.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
