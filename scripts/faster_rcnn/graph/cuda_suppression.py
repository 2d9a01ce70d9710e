"""How `operators.nms` is written in ONNX for CUDA.

ONNX Runtime's NonMaxSuppression on CUDA is a loop of the host: for every image, and every map of a pyramid, it launches
about a dozen small kernels and waits for the GPU twice. The form here launches as many kernels for a batch as for one
image, and waits once. On a CPU it gives the same answers, but takes longer.

B  images, or images times maps;  n  candidates of each, best first.
"""

import math
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir
from onnx import TensorProto
from onnx_ir.passes.common import InlinePass
from onnxscript import FLOAT, FLOAT16, opset18, script

from faster_rcnn.detector.operators import EXCLUDED

if TYPE_CHECKING:
    Floats = Any
    Halves = Any
else:  # for onnxscript: tensors of any shape
    Floats, Halves = FLOAT[...], FLOAT16[...]

op: Any = opset18  # typed for eager evaluation, but called while tracing

# Up to this many candidates are suppressed by one matrix of n × n overlaps, which takes 4 MB of float32 for each image
# and map; more of them in blocks of BLOCK, because the matrix of the 19,000 candidates of torchvision's models would
# take 1.4 GB. A trained model finds fewer than BLOCK of these in nearly every image, so the first block is the last.
MOST_AT_ONCE = 1024
BLOCK = 512


def nms(boxes: Any, scores: Any, iou_threshold: float, keep: int) -> Any:
    """Suppression by products with the matrix of overlaps: see `greedy`."""
    n = scores.shape[1]
    if not isinstance(n, int):
        raise ValueError(f"the number of candidates must be known before the export, not {n}")
    axis = op.Constant(value_ints=[2])
    real = op.Greater(scores, op.Constant(value_float=0.0))
    # a box without area overlaps none, so an ignored candidate suppresses none
    boxes = op.Where(op.Unsqueeze(real, axis), boxes, op.Constant(value_float=0.0))
    if n <= MOST_AT_ONCE:
        kept = op.Squeeze(greedy(boxes, iou_threshold=iou_threshold), op.Constant(value_ints=[1]))
    else:
        kept = _in_blocks(boxes, real, n, keep, iou_threshold)
    excluded = op.Constant(value_float=EXCLUDED)
    return op.Where(op.Cast(kept, to=TensorProto.BOOL), op.Max(scores, excluded), excluded)


def _in_blocks(boxes: Any, real: Any, n: int, keep: int, iou_threshold: float) -> Any:
    """`greedy_in_blocks` of n candidates, of which `real` [B, n] are not to be ignored. Returns float32 [B, n]."""
    blocks = math.ceil(n / BLOCK)
    missing = blocks * BLOCK - n
    flags = op.Cast(real, to=TensorProto.FLOAT)
    if missing:
        boxes = op.Pad(boxes, op.Constant(value_ints=[0, 0, 0, 0, missing, 0]))
        flags = op.Pad(flags, op.Constant(value_ints=[0, 0, 0, missing]))
    positions = op.Constant(value_floats=[float(place) for place in range(1, blocks * BLOCK + 1)])
    kept = greedy_in_blocks(
        op.Transpose(op.Reshape(boxes, op.Constant(value_ints=[0, blocks, BLOCK, 4])), perm=[1, 0, 2, 3]),
        op.Transpose(op.Reshape(flags, op.Constant(value_ints=[0, blocks, BLOCK])), perm=[1, 0, 2]),
        op.ReduceMax(op.Mul(flags, positions), op.Constant(value_ints=[1]), keepdims=1),
        op.Constant(value_floats=[float(keep + BLOCK - place) for place in range(keep + BLOCK)]),
        blocks=blocks,
        block=BLOCK,
        keep=keep,
        iou_threshold=iou_threshold,
    )
    after = op.Sub(op.Constant(value_ints=[blocks * BLOCK]), op.Shape(kept, start=1, end=2))
    kept = op.Pad(kept, op.Concat(op.Constant(value_ints=[0, 0, 0]), after, axis=0))
    first, last, axis = (op.Constant(value_ints=[value]) for value in (0, n, 1))
    return op.Slice(kept, first, last, axis)


@script(default_opset=opset18)
def once(kept: Halves, suppresses: Halves) -> Halves:
    """1 - kept @ suppresses, limited to 0 … 1: which boxes none of the kept ones suppresses."""
    return op.HardSigmoid(op.MatMul(kept, suppresses), alpha=-1.0, beta=1.0)


@script(default_opset=opset18)
def greedy(boxes: Floats, iou_threshold: float) -> Halves:
    """Greedy suppression of boxes [B, n, 4], best first: float16 [B, 1, n], 1 for the boxes that are kept, else 0.

    Let S[i, j] be 1 if i < j and the IoU of the boxes i and j exceeds the threshold, and f(k) the boxes that no box in
    k suppresses. Greedy suppression keeps a box if and only if no kept box before it suppresses it, so its result is a
    fixed point of f. There is no other: f(k)[j] depends only on k[i] for i < j, so two fixed points that agree on the
    boxes before j agree on j. After t steps from any k the first t boxes are right, so at most n steps are needed; in
    the images measured for docs/results.md 24 were enough. f turns a larger set into a smaller one. So from all boxes
    on, the sets after an even number of steps contain the fixed point, and those after an odd number are contained in
    it; if two that follow each other have equally many boxes, both are the fixed point.

    The overlap is computed by the same float32 operations, in the same order, as by ONNX Runtime's and torchvision's
    suppression on a CPU. One clamp is enough: if the other side is negative, so is the quotient, and no threshold is.
    The quotient of two boxes without area is NaN, which exceeds nothing. float16 is exact here: a sum of ones may be
    rounded, but never to 0.
    """
    x1, y1, x2, y2 = op.Split(boxes, num_outputs=4, axis=2)
    as_row = op.Constant(value_ints=[0, 1, -1])
    area = op.Mul(op.Sub(x2, x1), op.Sub(y2, y1))
    width = op.Sub(op.Min(x2, op.Reshape(x2, as_row)), op.Max(x1, op.Reshape(x1, as_row)))
    height = op.Sub(op.Min(y2, op.Reshape(y2, as_row)), op.Max(y1, op.Reshape(y1, as_row)))
    shared = op.Mul(op.Relu(width), height)
    union = op.Sub(op.Add(area, op.Reshape(area, as_row)), shared)
    overlap = op.Greater(op.Div(shared, union), op.Constant(value_float=iou_threshold))
    suppresses = op.Trilu(op.Cast(overlap, to=10), op.Constant(value_int=1), upper=1)
    every = op.Shape(op.Reshape(area, as_row))
    kept = op.ConstantOfShape(every, value=onnx.helper.make_tensor("one", 10, [1], [1.0]))
    changing = op.Constant(value=onnx.helper.make_tensor("true", 9, [], [True]))
    while changing:
        # Twelve steps for each time that the host waits, which by estimate costs as much as several steps of one image.
        kept = once(once(kept, suppresses), suppresses)
        kept = once(once(kept, suppresses), suppresses)
        kept = once(once(kept, suppresses), suppresses)
        kept = once(once(kept, suppresses), suppresses)
        kept = once(once(kept, suppresses), suppresses)
        fewest = once(kept, suppresses)
        kept = once(fewest, suppresses)
        changing = op.Cast(op.ReduceSum(op.Sub(kept, fewest), keepdims=0), to=9)
    return kept


@script(default_opset=opset18)
def greedy_in_blocks(
    boxes: Floats,
    real: Floats,
    last: Floats,
    weights: Floats,
    blocks: int,
    block: int,
    keep: int,
    iou_threshold: float,
) -> Floats:
    """Greedy suppression of many boxes [blocks, B, block, 4], one block after the other, best first.

    real: [blocks, B, block], 1 or, for boxes without area that are to be ignored, 0;  last: [B, 1], the number of boxes
    up to the last real one;  weights: [keep + block], falling.
    The best `keep` boxes kept so far and the boxes of the next block, in this order, are suppressed by `greedy`. None
    of the former suppresses another; so they are kept again, and a box of the block is kept if neither one of them nor
    a kept box of its block before it suppresses it. That is greedy suppression of all boxes until `keep` are kept, and
    those kept later rank behind them. It ends when all images have `keep` boxes or no real ones left.
    Returns [B, m], 1 for the kept ones of the first m boxes, else 0.
    """
    first = op.Gather(real, op.Constant(value_int=0), axis=0)  # [B, block]
    survivors = op.Slice(first, op.Constant(value_ints=[0]), op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    number = op.Unsqueeze(op.Constant(value_int=keep), op.Constant(value_ints=[0]))
    found = op.Expand(op.Constant(value_float=0.0), op.Concat(op.Shape(first, start=0, end=1), number, axis=0))
    best = op.Expand(op.Unsqueeze(found, op.Constant(value_ints=[2])), op.Constant(value_ints=[1, 1, 4]))
    wanted = op.Cast(op.Constant(value_int=keep), to=1)
    step = op.Cast(op.Constant(value_int=block), to=1)
    left = op.Identity(last)
    for place in range(blocks):
        candidates = op.Concat(best, op.Gather(boxes, place, axis=0), axis=1)
        eligible = op.Concat(found, op.Gather(real, place, axis=0), axis=1)
        passed = op.Squeeze(greedy(candidates, iou_threshold=iou_threshold), op.Constant(value_ints=[1]))
        kept = op.Mul(op.Cast(passed, to=1), eligible)
        order, rows = op.TopK(op.Mul(kept, weights), number)
        found = op.Min(order, op.Constant(value_float=1.0))
        every = op.Expand(op.Unsqueeze(rows, op.Constant(value_ints=[2])), op.Constant(value_ints=[1, 1, 4]))
        taken = op.GatherElements(candidates, every, axis=1)
        # without area again, if fewer than `keep` were kept
        best = op.Mul(taken, op.Unsqueeze(found, op.Constant(value_ints=[2])))
        of_block = op.Slice(kept, number, op.Constant(value_ints=[2147483647]), op.Constant(value_ints=[1]))
        survivors = op.Concat(survivors, of_block, axis=1)
        left = op.Sub(left, step)
        short = op.Sub(wanted, op.ReduceSum(found, op.Constant(value_ints=[1]), keepdims=1))
        searching = op.ReduceSum(op.Mul(op.Relu(left), op.Relu(short)), keepdims=0)
        finished = op.Not(op.Cast(searching, to=9))
        if finished:
            break
    return survivors


def expand_calls(model: onnx_ir.Model) -> None:
    """Replaces calls of the functions here by their nodes. The exporter does so except where one calls another."""
    for function in (once, greedy, greedy_in_blocks):
        expanded = onnx_ir.serde.deserialize_function(function.to_function_proto())
        model.functions[expanded.identifier()] = expanded
    InlinePass()(model)
    model.functions.clear()
