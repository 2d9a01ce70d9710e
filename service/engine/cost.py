"""Tells from a graph, before it runs, how much memory it needs and how many classes it distinguishes.

ONNX Runtime infers the shape of every tensor when it opens a session whose inputs have fixed shapes. Such a session is
opened for two small canvases, without the weights and without a run, which takes a few hundredths of a second. The size
of a tensor grows linearly with the pixels, so the two give its size on any canvas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnxruntime

from service.engine import onnx_subgraph
from service.engine.onnx_subgraph import Node, Skeleton
from service.engine.protobuf import INT64, UINT8
from service.engine.providers import LOG_FATAL_ONLY

SMALL_PIXELS = 160_000  # of the larger of the two canvases for which shapes are inferred
SMALL_TENSOR = 4096  # bytes; larger initializers are weights, whose values do not affect shapes
UNKNOWN_ROWS = 1000  # for a dimension that only a run can tell, in a graph that does not state P

MOST_IN_A_BATCH = 16  # images that usually wait at once and share a canvas

# Measured on the embedded models, with one to three thread counts and 1 to 16 concurrent runs (docs/results.md). All
# sessions share an arena. It holds the tensors of each concurrent run, with gaps between them, and from a session's
# second run on also one block for all its tensors. It grows further when runs of different sizes follow each other.
WEIGHTS_FACTOR = 1.85  # the memory of an open session, relative to its graph's bytes
RUN_FACTOR = 1.2  # the memory of a run in the warm-up, relative to the tensors that are alive at once
MORE_RUNS = 1  # the gaps and the blocks of all sessions, in runs
LOAD_FACTOR = 1.8  # the growth of the arena under load, relative to the warm-up

BYTES = {
    "double": 8, "int64": 8, "uint64": 8, "float": 4, "int32": 4, "uint32": 4, "float16": 4, "bfloat16": 4, "int16": 2,
    "uint16": 2, "string": 64,
}  # fmt: skip
FUSED = {"Relu", "Clip", "QuantizeLinear"}  # into the operation before, so that what lies between is never written
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}  # the output is the input under another shape
IN_PLACE = {
    "Add", "And", "Cast", "Clip", "Div", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mul", "Or",
    "Relu", "Sigmoid", "Softmax", "Sqrt", "Sub", "Where", "BatchNormalization",
}  # fmt: skip


class Tensor(NamedTuple):
    element: str
    shape: list[int | None]


class Need(NamedTuple):
    """The memory that a version needs on one CPU device, in bytes: to be loaded and warmed up, and under full load."""

    to_start: int
    under_load: int


class Inspection:
    """What a graph shows without a run. Raises ValueError if ONNX Runtime cannot infer the shapes of its tensors."""

    def __init__(self, graph: bytes, proposals_graph: bytes, canvases: Sequence[tuple[int, int]]) -> None:
        self._bytes = len(graph) + len(proposals_graph)
        self._nodes = onnx_subgraph.nodes(graph)
        self._proposal_nodes = onnx_subgraph.nodes(proposals_graph)
        self._pixels = [math.prod(canvas) for canvas in canvases]
        landscape, portrait = ([c for c in canvases if (c[0] <= c[1]) is wide] for wide in (True, False))
        # Some tensors grow with one of the sides alone, so both orientations count.
        skeleton = onnx_subgraph.skeleton(graph, SMALL_TENSOR)
        self._scalings = [_Scaling(skeleton, max(group, key=math.prod)) for group in (landscape, portrait) if group]

    @property
    def classes(self) -> int | None:
        """The number of classes that the RoI head distinguishes, without the background; None if this is not visible.

        The head ends in a softmax over the classes and the background. The RPN may have one too, so those on which the
        proposals depend do not count.
        """
        of_the_rpn = {name for node in self._proposal_nodes for name in node.outputs}
        softmaxes = [node.outputs[0] for node in self._nodes if node.operator == "Softmax"]
        tensors = self._scalings[0].tensors
        lengths = {(tensors[name].shape or [None])[-1] for name in softmaxes if name not in of_the_rpn}
        length = lengths.pop() if len(lengths) == 1 else None
        return length - 1 if length else None

    def need(self, batch_pixels: int, threads: Sequence[int], runs: int, fixed_pairs: int = 0) -> Need:
        """The memory of all sessions.

        batch_pixels  the most canvas pixels of a batch with more than one image
        threads       the thread counts for which sessions are opened
        runs          concurrent runs, each with one thread
        fixed_pairs   pairs of sessions with fixed shapes (`fixed_sessions.pairs`); as ONNX Runtime rearranges most of
                      the weights on a CPU, they share too little to count
        """
        smallest, largest = min(self._pixels), max(self._pixels)
        pairs = len(threads) + fixed_pairs
        weights = WEIGHTS_FACTOR * self._bytes * pairs * (2 if self._is_half else 1)
        images = max(1, min(MOST_IN_A_BATCH, batch_pixels // smallest))
        run = RUN_FACTOR * max(self._alive(largest, 1), self._alive(smallest, images))
        warm = run * (runs + MORE_RUNS)
        return Need(math.ceil(weights + warm), math.ceil(weights + LOAD_FACTOR * warm))

    def _alive(self, pixels: int, images: int) -> int:
        """The bytes of the tensors alive at once in a run of the whole graph, plus the same for the proposals."""
        every_size = [_in_int8(self._nodes, scaling.sizes(pixels, images)) for scaling in self._scalings]
        return max(_peak(self._nodes, sizes) + _peak(self._proposal_nodes, sizes) for sizes in every_size)

    @property
    def _is_half(self) -> bool:
        return any(tensor.element == "float16" for tensor in self._scalings[0].tensors.values())


class _Scaling:
    """How the tensors of a graph grow with a canvas of one shape."""

    def __init__(self, skeleton: Skeleton, canvas: tuple[int, int]) -> None:
        small, large = (_scaled(canvas, share * SMALL_PIXELS) for share in (0.25, 1.0))
        self._pixels = math.prod(small), math.prod(large)
        self.tensors = shapes(skeleton, large)
        self._sizes = _sizes(shapes(skeleton, small)), _sizes(self.tensors)

    def sizes(self, pixels: int, images: int) -> dict[str, int]:
        """The bytes of each tensor for a batch of `images` images on canvases of `pixels` pixels."""
        (few, many), (low, high) = self._pixels, self._sizes
        found = {}
        for name, size in high.items():
            per_pixel = max(0.0, (size - low.get(name, 0)) / (many - few)) if many > few else size / many
            found[name] = images * math.ceil(max(0.0, size + per_pixel * (pixels - many)))
        return found


def _in_int8(nodes: Sequence[Node], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the tensors in an int8 graph, whose operations read and write int8 without floats in between."""
    read_by: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            read_by.setdefault(name, []).append(node)
    found = dict(sizes)
    for node in reversed(nodes):
        for name in node.outputs:
            readers = read_by.get(name, [])
            if len(readers) == 1 and readers[0].operator in FUSED:
                found[name] = min(found.get(name, 0), found.get(readers[0].outputs[0], 0))
    for node in nodes:
        if node.operator == "DequantizeLinear":
            found[node.outputs[0]] = found.get(node.inputs[0], 0)
    return found


def shapes(skeleton: Skeleton, canvas: tuple[int, int]) -> dict[str, Tensor]:
    """The element type and shape of every tensor for one image on `canvas`. Dimensions that depend on data are None.

    Raises ValueError if ONNX Runtime cannot infer them.
    """
    inputs = {"images": (UINT8, (1, *canvas, 3)), "sizes": (INT64, (1, 2))}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL_ONLY
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # This level computes shapes of shapes, but does not merge operations, so every tensor keeps its name.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    model = skeleton.with_inputs(inputs)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise ValueError("ONNX Runtime cannot infer the shapes of its tensors") from error
    return {
        tensor.name: Tensor(
            tensor.type.removeprefix("tensor(").removesuffix(")"),
            [size if isinstance(size, int) else None for size in tensor.shape or []],
        )
        for tensor in session.get_outputs()
    }


def _scaled(canvas: tuple[int, int], pixels: float) -> tuple[int, int]:
    """A canvas of the same shape with at most `pixels` pixels. Its sides are multiples of 64 if that is possible."""
    scale = min(1.0, math.sqrt(pixels / math.prod(canvas)))
    height, width = (max(64, round(side * scale / 64) * 64) if side > 64 else side for side in canvas)
    return height, width


def _sizes(found: Mapping[str, Tensor]) -> dict[str, int]:
    """The bytes of each tensor."""
    proposals = found["proposals"].shape if "proposals" in found else []
    rows = next((size for size in proposals[1:2] if size), UNKNOWN_ROWS)
    return {
        name: BYTES.get(tensor.element, 1) * math.prod(rows if size is None else size for size in tensor.shape)
        for name, tensor in found.items()
    }


def _peak(nodes: Sequence[Node], sizes: Mapping[str, int]) -> int:
    """The most bytes that are alive at once if the nodes run in this order and memory is reused as soon as possible."""
    last_read = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    owner: dict[str, str] = {}  # the tensor whose memory another one uses
    until: dict[str, int] = {}  # the node after which an owner's memory is free
    for index, node in enumerate(nodes):
        for name in node.outputs:
            owner[name] = _reused(node, name, index, owner, until, sizes) or name
            until[owner[name]] = max(until.get(owner[name], 0), last_read.get(name, len(nodes)))
    born: dict[int, int] = {}
    freed: dict[int, int] = {}
    for index, node in enumerate(nodes):
        for name in node.outputs:
            if owner[name] == name:
                born[index] = born.get(index, 0) + sizes.get(name, 0)
                freed[until[name]] = freed.get(until[name], 0) + sizes.get(name, 0)
    alive = peak = 0
    for index in range(len(nodes)):
        alive += born.get(index, 0)
        peak = max(peak, alive)
        alive -= freed.get(index, 0)
    return peak


def _reused(
    node: Node, output: str, index: int, owner: Mapping[str, str], until: Mapping[str, int], sizes: Mapping[str, int]
) -> str | None:
    """The tensor in whose memory a node writes its output, or None if it needs memory of its own."""
    candidates = [owner[name] for name in node.inputs if name in owner]
    if node.operator in VIEWS:
        return candidates[0] if candidates else None
    if node.operator not in IN_PLACE:
        return None
    for name in candidates:
        if until.get(name) == index and sizes.get(name, 0) == sizes.get(output, 0):
            return name
    return None
