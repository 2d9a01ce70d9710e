"""A written graph in int8 for a CPU: half the time, a third of the file, a little less precise (scripts/RESULTS.md).

Convolutions, rectifiers and the head's products compute in eight bits. Their scales are measured once, on images,
and fixed in the file: scales taken from each batch would let an image's neighbours change its answer. Coordinates,
suppression, scores and deltas stay float32. For a CPU with 8-bit products that do not saturate (VNNI, since 2019; Arm's
dot products); on a GPU ONNX Runtime has next to no int8.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from service.images.fit import Canvas

FORMING = {"Cast", "Flatten", "Reshape", "Slice", "Softmax", "Transpose"}
RECTIFIERS = {"Relu"}  # between two quantised layers; else each of them would go to float32 and back


def quantise(graph: Path, out: Path, canvases: Iterable[Canvas]) -> None:
    """Writes `graph` in int8 to `out`.

    canvases: some dozens of images like those that will be asked about, on which the ranges of the features are
    measured; one image a run, so that they may differ in size.
    Raises ValueError if the graph has no convolution, or is in int8 already.
    """
    model = onnx.load(graph)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise ValueError(f"{graph} is in int8 already; start from the float32 graph")
    with tempfile.TemporaryDirectory() as aside:
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


def _layers(graph: onnx.GraphProto) -> list[str]:
    """The hidden layers, but for the first convolution: its three channels leave int8 nothing to gain, and to quantise
    the image costs more than that. Layers that give scores and deltas take no time and want all their digits.
    Products of two features, RoIAlign's, are not layers, nor is what blanks the features outside an image
    (`padding.py`), a convolution of one channel by ones."""
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
    """Whether nothing computes with its features: after its bias they are only brought into another form."""
    readers = [node for node in graph.node if layer.output[0] in node.input]
    if all(node.op_type == "Add" for node in readers):
        biased = {node.output[0] for node in readers}
        readers = [node for node in graph.node if biased.intersection(node.input)]
    return all(node.op_type in FORMING for node in readers)


class _Canvases(CalibrationDataReader):
    """Feeds one image after another, as ONNX Runtime's calibration asks for them."""

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
