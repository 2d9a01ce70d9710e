"""Writes `service/engine/resize.onnx`, the graph with which an engine resizes images on its device:

    python -m faster_rcnn.graph.resize_graph

The service cannot make it, because it does not import `onnx`.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from service.engine import resize

OPSET = 18  # of the detectors
FLOAT, UINT8, INT64, BOOL = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL


def resize_graph() -> onnx.ModelProto:
    """One image to its canvas, by two matrix products: along its rows, then along its columns.

    h, w  the image as decoded;  H, W  the canvas

    The inputs are described in `service.engine.resize`. The matrices are computed from four numbers for each row or
    column of the canvas, because they are larger than most images. Each product is a single one for all three colours.
    """
    inputs = [
        helper.make_tensor_value_info("image", UINT8, ["h", "w", 3]),
        helper.make_tensor_value_info("columns", FLOAT, [4, "W"]),
        helper.make_tensor_value_info("rows", FLOAT, ["H", 4]),
        helper.make_tensor_value_info("image_columns", FLOAT, ["w", 1]),
        helper.make_tensor_value_info("image_rows", FLOAT, [1, "h"]),
        helper.make_tensor_value_info("rounds", BOOL, []),
    ]
    nodes = [
        *_matrix("columns", axis=0),  # [w, W]
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["planes"], ["levels"], to=FLOAT),
        helper.make_node("MatMul", ["levels", "columns_matrix"], ["wide"]),  # [h, 3, W]
        # Pillow keeps whole levels between its two passes.
        helper.make_node("Add", ["wide", "half"], ["wide_and_half"]),
        helper.make_node("Floor", ["wide_and_half"], ["wide_rounded"]),
        helper.make_node("Where", ["rounds", "wide_rounded", "wide"], ["between"]),
        helper.make_node("Reshape", ["between", "flat"], ["between_flat"]),  # [h, 3 W]
        *_matrix("rows", axis=1),  # [H, h]
        helper.make_node("MatMul", ["rows_matrix", "between_flat"], ["resized"]),  # [H, 3 W]
        # The weights of a pixel add up to 1, so no sum exceeds 255 by more than the rounding of float32. The cast
        # truncates.
        helper.make_node("Add", ["resized", "half"], ["resized_and_half"]),
        helper.make_node("Cast", ["resized_and_half"], ["whole"], to=UINT8),
        helper.make_node("Reshape", ["whole", "unflat"], ["resized_planes"]),  # [H, 3, W]
        helper.make_node("Transpose", ["resized_planes"], ["pixels"], perm=[0, 2, 1]),
    ]
    constants = [
        helper.make_tensor("half", FLOAT, [], [0.5]),
        helper.make_tensor("flat", INT64, [2], [0, -1]),
        helper.make_tensor("unflat", INT64, [3], [0, 3, -1]),
    ]
    outputs = [helper.make_tensor_value_info("pixels", UINT8, ["H", "W", 3])]
    graph = helper.make_graph(nodes, "resize", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _matrix(axis_input: str, axis: int) -> list[onnx.NodeProto]:
    """The weight of each pixel of the image for each of the canvas, by the formula in `service.engine.resize`."""

    def name(part: str) -> str:
        return f"{axis_input}_{part}"

    parts = [name(part) for part in resize.AXIS_PARTS]
    return [
        helper.make_node("Split", [axis_input], parts, axis=axis, num_outputs=len(parts)),
        helper.make_node("Sub", [f"image_{axis_input}", name("pixel")], [name("whole_offset")]),
        helper.make_node("Sub", [name("whole_offset"), name("fraction")], [name("offset")]),
        helper.make_node("Mul", [name("offset"), name("slope")], [name("signed")]),
        helper.make_node("Abs", [name("signed")], [name("loss")]),
        helper.make_node("Sub", [name("peak"), name("loss")], [name("weight")]),
        helper.make_node("Relu", [name("weight")], [name("matrix")]),
    ]


def main() -> None:
    model = resize_graph()
    onnx.checker.check_model(model, full_check=True)
    resize.GRAPH.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
