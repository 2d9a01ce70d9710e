"""Writes `service/engine/resize.onnx`, the graph with which an engine resizes images on its device:

    python -m faster_rcnn.graph.resize_graph

The service cannot make it, because it does not import `onnx`.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from service.engine import resize

OPSET = 18  # of the detectors
FLOAT, UINT8, INT32, INT64, BOOL = (
    TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL,
)  # fmt: skip


def resize_graph() -> onnx.ModelProto:
    """One image to its canvas, by two matrix products: along its rows, then along its columns.

    h, w  the image as decoded;  H, W  the canvas;  T  the most pixels of which a pixel of the canvas is a mean

    The inputs are described in `service.engine.resize`. The matrices are made here from their few weights that are not
    zero, because they are larger than most images. Each product is a single one for all three colours, and for the high
    and low parts of the weights.
    """
    inputs = [
        helper.make_tensor_value_info("image", UINT8, ["h", "w", 3]),
        *_weights("columns", ["T_columns", "2 W"]),
        *_weights("rows", ["2 H", "T_rows"]),
        helper.make_tensor_value_info("rounds", BOOL, []),
    ]
    nodes = [
        *_matrix("columns", axis=0),  # [w, 2 W]
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["planes"], ["levels"], to=FLOAT),
        helper.make_node("MatMul", ["levels", "columns_matrix"], ["wide"]),  # [h, 3, 2 W]
        *_rounded("wide", axis=2),
        helper.make_node("Add", ["wide_high", "wide_low"], ["wide_sum"]),
        helper.make_node("Where", ["rounds", "wide_rounded", "wide_sum"], ["between"]),
        helper.make_node("Reshape", ["between", "flat"], ["between_flat"]),  # [h, 3 W]
        *_matrix("rows", axis=1),  # [2 H, h]
        helper.make_node("MatMul", ["rows_matrix", "between_flat"], ["tall"]),  # [2 H, 3 W]
        *_rounded("tall", axis=0),
        helper.make_node("Cast", ["tall_rounded"], ["whole"], to=UINT8),
        helper.make_node("Reshape", ["whole", "unflat"], ["whole_planes"]),  # [H, 3, W]
        helper.make_node("Transpose", ["whole_planes"], ["pixels"], perm=[0, 2, 1]),
    ]
    constants = [
        helper.make_tensor("half", FLOAT, [], [0.5]),
        helper.make_tensor("most", FLOAT, [], [255.0]),
        helper.make_tensor("flat", INT64, [2], [0, -1]),
        helper.make_tensor("unflat", INT64, [3], [0, 3, -1]),
    ]
    outputs = [helper.make_tensor_value_info("pixels", UINT8, ["H", "W", 3])]
    graph = helper.make_graph(nodes, "resize", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _weights(axis: str, shape: list[str]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(f"{axis}_shape", INT64, [2]),
        helper.make_tensor_value_info(f"{axis}_places", INT32, shape),
        helper.make_tensor_value_info(f"{axis}_weights", FLOAT, shape),
    ]


def _matrix(name: str, axis: int) -> list[onnx.NodeProto]:
    """The weight of each pixel of the image for each of the canvas, nearly all of them zero."""
    return [
        helper.make_node("ConstantOfShape", [f"{name}_shape"], [f"{name}_zeros"]),
        helper.make_node(
            "ScatterElements",
            [f"{name}_zeros", f"{name}_places", f"{name}_weights"],
            [f"{name}_matrix"],
            axis=axis,
        ),
    ]


def _rounded(name: str, axis: int) -> list[onnx.NodeProto]:
    """The high and the low parts of sums, and the whole numbers next to the sums of both; halves are rounded up.

    The fraction of the high part is taken out before the low part is added, because float32 has no room for all bits.
    The weights may add up to a little more than 1, so 255 is the limit, as in Pillow.
    """
    return [
        helper.make_node("Split", [name], [f"{name}_high", f"{name}_low"], axis=axis, num_outputs=2),
        helper.make_node("Add", [f"{name}_high", "half"], [f"{name}_shifted"]),
        helper.make_node("Floor", [f"{name}_shifted"], [f"{name}_whole"]),
        helper.make_node("Sub", [f"{name}_shifted", f"{name}_whole"], [f"{name}_fraction"]),
        helper.make_node("Add", [f"{name}_fraction", f"{name}_low"], [f"{name}_rest"]),
        helper.make_node("Floor", [f"{name}_rest"], [f"{name}_carry"]),
        helper.make_node("Add", [f"{name}_whole", f"{name}_carry"], [f"{name}_unlimited"]),
        helper.make_node("Min", [f"{name}_unlimited", "most"], [f"{name}_rounded"]),
    ]


def main() -> None:
    model = resize_graph()
    onnx.checker.check_model(model, full_check=True)
    resize.GRAPH.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
