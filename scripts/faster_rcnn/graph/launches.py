"""Counts what a run of a graph costs on CUDA besides arithmetic: kernel launches, and waits of the host for the GPU.

A launch takes a few microseconds, and during a wait the host prepares nothing for the GPU. So for small batches their
numbers decide how long a run takes. They are estimates, to compare two forms of a graph without a GPU.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime

# Operators that only give a tensor another shape, or read its shape.
FREE = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Constant"}
# Kernels of those that launch more than one. ScatterND first copies its data; NonZero counts, sums up and writes.
KERNELS = {"ScatterND": 2, "ScatterElements": 2, "NonZero": 3}
# NonMaxSuppression, for every class of every image (non_max_suppression_impl.cu of ONNX Runtime 1.31): number, sort,
# gather, count, clear, compare, number, reduce, select twice, copy, and two that write the result. It waits for the
# number of candidates and for that of the survivors, and twice for the call.
NMS_KERNELS, NMS_WAITS, NMS_WAITS_OF_CALL = 13, 2, 2
# A Loop reads its condition on the host after each round. Suppression takes one or two rounds of twelve steps; of the
# blocks of a long list of candidates (a Loop with a largest number of rounds), a trained model needs one.
ROUNDS, ROUNDS_OF_BLOCKS = 2, 1


class Launches(NamedTuple):
    """Of one run.  kernels: launches of kernels;  waits: how often the host waits for the GPU."""

    kernels: int
    waits: int

    def __add__(self, other: "Launches") -> "Launches":  # type: ignore[override]  # not a tuple's concatenation
        return Launches(self.kernels + other.kernels, self.waits + other.waits)

    def times(self, rounds: int) -> "Launches":
        return Launches(self.kernels * rounds, self.waits * rounds)


def count_launches(path: Path, images: int, height: int, width: int) -> Launches:
    """The launches and waits of a run of `images` images on a canvas of height × width.

    Counted after ONNX Runtime's optimisations for every provider, and with the dimensions fixed, so that no arithmetic
    on shapes is left. The bodies of loops are counted as they are in the file, because the optimiser, which has a CPU
    at hand, writes their float16 operators for it. The wait for the results is included.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(optimised)
        options.log_severity_level = 3
        for name, value in (("N", images), ("H", height), ("W", width)):
            options.add_free_dimension_override_by_name(name, value)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        model = onnx.load(optimised)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    bodies = {node.name: _body(node) for node in onnx.load(path).graph.node if node.op_type == "Loop"}
    found = Launches(0, 1)
    units = _first_dimensions(graph)
    for node in graph.node:
        if node.op_type == "NonMaxSuppression":
            number = units[node.input[0]]
            found += Launches(NMS_KERNELS * number, NMS_WAITS * number + NMS_WAITS_OF_CALL)
        elif node.op_type == "Loop":
            found += _of_loop(node, bodies[node.name])
        else:
            found += _of_operator(node)
    return found


def _first_dimensions(graph: onnx.GraphProto) -> dict[str, int]:
    """Of each tensor; that of boxes is the number of images and maps in which they are suppressed."""
    shapes = {one.name: one.type.tensor_type.shape.dim for one in (*graph.input, *graph.value_info, *graph.output)}
    return {name: dims[0].dim_value for name, dims in shapes.items() if dims}


def _body(loop: onnx.NodeProto) -> onnx.GraphProto:
    return next(attribute.g for attribute in loop.attribute if attribute.name == "body")


def _of_loop(loop: onnx.NodeProto, body: onnx.GraphProto) -> Launches:
    round_of_body = Launches(0, 1)
    for node in body.node:
        round_of_body += _of_loop(node, _body(node)) if node.op_type == "Loop" else _of_operator(node)
    rounds = ROUNDS_OF_BLOCKS if loop.input[0] else ROUNDS
    copies_of_results = Launches(len(loop.output), 0)
    return round_of_body.times(rounds) + copies_of_results


def _of_operator(node: onnx.NodeProto) -> Launches:
    if node.op_type in FREE:
        return Launches(0, 0)
    return Launches(KERNELS.get(node.op_type, 1), int(node.op_type == "NonZero"))
