"""Stores the weights that two graphs of a version have in common once, in `model.onnx` (contract 4.8)."""

from pathlib import Path

import onnx

from service.engine.shared_weights import PORTABLE, weights, with_weights

SMALLEST_SHARED = 256  # bytes of a weight; a reference takes about 80


def share_weights(path: Path, portable: Path) -> None:
    """Replaces the weights in the graph at `path` whose bytes are also in `portable` by references to them.

    portable: the version's `model.onnx`. Each of its weights is referred to once, as the service demands.
    """
    theirs = portable.read_bytes()
    free = {
        (weight.element, theirs[weight.offset : weight.offset + weight.length]): weight
        for weight in weights(theirs).values()
        if weight.length >= SMALLEST_SHARED
    }
    before = onnx.load(path)
    model = onnx.ModelProto()
    model.CopyFrom(before)
    for tensor in model.graph.initializer:
        if weight := free.pop((tensor.data_type, tensor.raw_data), None):
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", PORTABLE), ("offset", weight.offset), ("length", weight.length)):
                tensor.external_data.add(key=key, value=str(value))
    shared = model.SerializeToString()
    if onnx.load_model_from_string(with_weights(shared, theirs)) != before:
        raise AssertionError(f"{path.name} differs from the graph that was verified once its weights are put back")
    path.write_bytes(shared)
