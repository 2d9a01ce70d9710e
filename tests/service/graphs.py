"""Small models that fulfil contract 1, or break it in one way, for tests for which the embedded model is unsuitable.

Their detector is simple: the score is the image's mean brightness b (0 to 1, without the padding), and the boxes are
fixed shares of the image. So the correct answer for any image can be calculated by hand:

    detections  [0, 0, w/2, h/2] scored b, label 0;  [w/4, h/4, w, h] scored b/2, label 1
    proposals   the same two boxes, and [0, 0, w, h] scored b/4
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LABELS = ["first", "second"]
CANVASES = [[64, 96], [96, 64]]
RESIZE = {"min_size": 64, "max_size": 96}
SHARES = [[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1], [0, 0, 1, 1]]


def graph(
    *,
    fails_on_white: bool = False,
    work: int = 0,
    rename: dict[str, str] | None = None,
    left_out: float | None = None,
) -> onnx.ModelProto:
    """A model of this kind.

    fails_on_white  the engine raises for an image with a value of 255
    work            number of matrix products in the RoI head, about 10 ms each
    rename          new names of outputs, by their old names
    left_out        value of the optional output of this name, for every image
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(value: Any, dtype: Any) -> str:
        name = f"constant{len(constants)}"
        constants.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    node("Cast", ["images"], "pixels", to=TensorProto.FLOAT)
    node("Cast", ["sizes"], "hw", to=TensorProto.FLOAT)
    node("ReduceSum", ["pixels", constant([1, 2, 3], np.int64)], "total", keepdims=0)
    node("ReduceProd", ["hw"], "area", axes=[1], keepdims=0)
    node("Div", ["total", "area"], "mean")
    node("Div", ["mean", constant(3 * 255, np.float32)], "brightness")
    if fails_on_white:
        node("ReduceMax", ["pixels"], "brightest", axes=[1, 2, 3], keepdims=0)
        node("Div", ["brightest", constant(255, np.float32)], "as_share")
        node("Cast", ["as_share"], "index", to=TensorProto.INT64)
        node("Gather", [constant([1], np.float32), "index"], "one")  # element 1 does not exist
        node("Mul", ["brightness", "one"], "brightness_checked")
    brightness = "brightness_checked" if fails_on_white else "brightness"

    node("Gather", ["hw", constant([1, 0, 1, 0], np.int64)], "whwh", axis=1)
    node("Unsqueeze", ["whwh", constant([1], np.int64)], "whwh_rows")
    node("Mul", ["whwh_rows", constant(SHARES, np.float32)], "proposals")
    node("Unsqueeze", [brightness, constant([1], np.int64)], "brightness_column")
    node("Mul", ["brightness_column", constant([1, 0.5, 0.25], np.float32)], "objectness")
    node("Shape", ["sizes"], "shape")
    node("Gather", ["shape", constant([0], np.int64)], "n")
    node("Expand", [constant([3], np.int64), "n"], "num_proposals")

    scores = "objectness"
    if work:
        matrix = constant(np.eye(600), np.float32)
        node("ReduceMax", ["objectness"], "seed", keepdims=0)
        product = node("Mul", ["seed", matrix], "product")
        for step in range(work):
            product = node("MatMul", [product, matrix], f"product{step}")
        node("ReduceMax", [product], "peak", keepdims=0)
        node("Mul", ["peak", constant(0, np.float32)], "nothing")
        scores = node("Add", ["objectness", "nothing"], "scores_all")
    first_two = [constant([0], np.int64), constant([2], np.int64), constant([1], np.int64)]
    node("Slice", ["proposals", *first_two], "boxes")
    node("Slice", [scores, *first_two], "scores")
    node("Concat", ["n", constant([2], np.int64)], "n_by_two", axis=0)
    node("Expand", [constant([0, 1], np.int64), "n_by_two"], "labels")
    node("Expand", [constant([2], np.int64), "n"], "num_detections")

    value = helper.make_tensor_value_info
    outputs = [
        value("num_detections", TensorProto.INT64, ["N"]),
        value("boxes", TensorProto.FLOAT, ["N", 2, 4]),
        value("scores", TensorProto.FLOAT, ["N", 2]),
        value("labels", TensorProto.INT64, ["N", 2]),
        value("num_proposals", TensorProto.INT64, ["N"]),
        value("proposals", TensorProto.FLOAT, ["N", 3, 4]),
        value("objectness", TensorProto.FLOAT, ["N", 3]),
    ]
    if left_out is not None:
        node("Expand", [constant([left_out], np.float32), "n"], "left_out")
        outputs.append(value("left_out", TensorProto.FLOAT, ["N"]))
    for old, new in (rename or {}).items():
        node("Identity", [old], new)
        next(output for output in outputs if output.name == old).name = new
    inputs = [value("images", TensorProto.UINT8, ["N", "H", "W", 3]), value("sizes", TensorProto.INT64, ["N", 2])]
    made = helper.make_graph(nodes, "plain", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def publish(
    store: Path, name: str = "plain", version: int = 1, card: dict[str, Any] | None = None, **kind: Any
) -> Path:
    """Writes and returns `<store>/<name>/<version>/`. `card` changes model.json; `kind` is passed to `graph`."""
    folder = store / name / str(version)
    folder.mkdir(parents=True)
    data = graph(**kind).SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    document = {
        "name": name,
        "version": version,
        "labels": LABELS,
        "canvases": CANVASES,
        "resize": RESIZE,
        "score_threshold": 0.0,
        "metrics": {},
        "training": "none",
        "opset": 17,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (folder / "model.json").write_text(json.dumps(document | (card or {})))
    return folder


def add_graph(folder: Path, data: bytes, name: str = "cuda", file: str = "model.cuda.onnx", **entry: Any) -> Path:
    """Adds another graph to a version: its file, and its entry in the card, which `entry` changes. Returns the file."""
    (folder / file).write_bytes(data)
    card = json.loads((folder / "model.json").read_text())
    described = {"file": file, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} | entry
    card["graphs"] = card.get("graphs", {}) | {name: described}
    (folder / "model.json").write_text(json.dumps(card))
    return folder / file


def referring(portable: bytes, model: onnx.ModelProto, weight: str, **changes: str | None) -> bytes:
    """`model` with the values of the initializer `weight` replaced by a reference to those in `portable`.

    changes  other entries of the reference, by key; None leaves one out
    """
    values = next(one.raw_data for one in onnx.load_from_string(portable).graph.initializer if one.name == weight)
    entries = {"location": "model.onnx", "offset": str(portable.index(values)), "length": str(len(values))} | changes
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(one for one in copy.graph.initializer if one.name == weight)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return copy.SerializeToString()
