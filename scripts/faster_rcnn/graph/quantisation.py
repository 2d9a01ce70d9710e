"""Quantises an exported graph to int8 for a CPU: half the time, a third of the file size, slightly lower AP.

Convolutions, ReLUs and the head's matrix products compute in eight bits. Their scales are measured once, on images, and
stored in the file. Scales measured on each batch would let an image's neighbours change its answer. Coordinates,
suppression, scores and deltas stay float32. It needs a CPU whose 8-bit products do not saturate (VNNI, since 2019, or
Arm's dot products). On a GPU ONNX Runtime has almost no int8 kernels. Figures are in docs/results.md.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from service.images.fit import Canvas

FORMATTING = {"Cast", "Flatten", "Reshape", "Slice", "Softmax", "Transpose"}
RECTIFIERS = {"Relu"}  # quantised too: between two quantised layers each would convert to float32 and back


def quantise(graph: Path, out: Path, canvases: Iterable[Canvas]) -> None:
    """Writes `graph` in int8 to `out`.

    canvases: a few dozen typical images, on which the ranges of the features are measured. Each is run separately, so
    they may differ in size. Raises ValueError if the graph has no convolution or is already in int8.
    """
    model = onnx.load(graph)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise ValueError(f"{graph} is already in int8; start from the float32 graph")
    with tempfile.TemporaryDirectory() as aside, _errors_alone_are_logged():
        named = Path(aside) / "model.onnx"
        onnx.save(model, named)
        quantize_static(
            named,
            out,
            _Canvases(canvases),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", *RECTIFIERS],
            nodes_to_quantize=_layers(model.graph),
        )


@contextlib.contextmanager
def _errors_alone_are_logged() -> Iterator[None]:
    """Hides the quantiser's warnings, which address its caller and not the user. It logs them to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _layers(graph: onnx.GraphProto) -> list[str]:
    """The names of the layers to quantise: the hidden ones and their ReLUs.

    Not the first convolution: it has only three input channels, and quantising the image costs more than int8 gains.
    Not the layers that compute scores and deltas: they take little time and need full precision.
    A matrix product of two features belongs to RoIAlign and is not a layer. A convolution by ones blanks the features
    outside an image (`detector/padding.py`) and is not a layer either.
    """
    weights = {one.name: one for one in graph.initializer}
    convolutions = [
        node
        for node in graph.node
        if node.op_type == "Conv" and (numpy_helper.to_array(weights[node.input[1]]) != 1).any()
    ]
    if not convolutions:
        raise ValueError("the graph has no convolution")
    products = [
        node
        for node in graph.node
        if node.op_type in ("Gemm", "MatMul") and any(name in weights for name in node.input)
    ]
    hidden = [node.name for node in convolutions[1:] + products if not _gives_answers(node, graph)]
    return hidden + [node.name for node in graph.node if node.op_type in RECTIFIERS]


def _gives_answers(layer: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether its result, after the bias, is only reshaped or converted and never computed with."""
    readers = [node for node in graph.node if layer.output[0] in node.input]
    if all(node.op_type == "Add" for node in readers):
        biased = {node.output[0] for node in readers}
        readers = [node for node in graph.node if biased.intersection(node.input)]
    return all(node.op_type in FORMATTING for node in readers)


class _Canvases(CalibrationDataReader):
    """Feeds ONNX Runtime's calibration one image after another."""

    def __init__(self, canvases: Iterable[Canvas]) -> None:
        self._feeds = _feeds(canvases)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _feeds(canvases: Iterable[Canvas]) -> Iterator[dict[str, np.ndarray]]:
    for canvas in canvases:
        images = np.zeros((1, *canvas.size, 3), np.uint8)
        height, width = canvas.pixels.shape[:2]
        images[0, :height, :width] = canvas.pixels
        yield {"images": images, "sizes": np.array([[height, width]], np.int64)}
