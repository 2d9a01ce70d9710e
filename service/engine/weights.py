"""The weights of a version, in memory once for all the sessions that use them.

A session keeps a copy of every initializer of its graph. So the large ones are taken out of the graph and given to each
session in two ways: as values that ONNX Runtime reads while it optimises the graph (external initializers), and as the
memory that the session then uses (shared initializers). On CUDA the second is on the GPU.

On the CPU, ONNX Runtime rearranges the weights of convolutions and matrix products, and keeps the rearranged copy in
each session. Only those that it uses as they are in the file are shared there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from service.engine.onnx_subgraph import Weight
from service.engine.providers import CUDA

SMALLEST = 4096  # bytes; smaller initializers are shapes and limits, which ONNX Runtime folds into other nodes

# NumPy's types by TensorProto.DataType. Any other type, such as bfloat16, stays in the graph.
TYPES = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 10: np.float16,
    11: np.float64, 12: np.uint32, 13: np.uint64,
}  # fmt: skip


class Weights:
    """Weights by name. Must live as long as the sessions that use them, which hold no reference to them."""

    def __init__(self, weights: Mapping[str, Weight], provider: str, device: int) -> None:
        self._read = {name: OrtValue.ortvalue_from_numpy(_array(weight)) for name, weight in weights.items()}
        self._used = self._read
        if provider == CUDA:
            self._on_gpu = {
                name: OrtValue.ortvalue_from_numpy(value.numpy(), "cuda", device) for name, value in self._read.items()
            }
            # ONNX Runtime shares only memory that it does not own, so it gets a second value for the same memory.
            self._used = {name: OrtValue.from_dlpack(value) for name, value in self._on_gpu.items()}

    def give_to(self, options: onnxruntime.SessionOptions, names: Sequence[str]) -> None:
        """Adds the weights of these names to the options for a session."""
        options.add_external_initializers(names, [self._read[name] for name in names])
        for name in names:
            options.add_initializer(name, self._used[name])


def _array(weight: Weight) -> NDArray[Any]:
    """A copy of its own, because the values in the file may have any alignment."""
    kind = np.dtype(TYPES[weight.element]).newbyteorder("<")
    return np.frombuffer(weight.values, kind).reshape(weight.shape).copy()
