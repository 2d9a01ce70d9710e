"""ONNX translations of the operators in `operators.py`.

Opset 18: from 22 on ONNX Runtime 1.31 has no CUDA kernel for MaxPool.
"""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import opset18

from faster_rcnn.detector.operators import EXCLUDED, PADDING

OPSET = 18
op: Any = opset18  # its type annotations are those of eager evaluation, not of tracing


def _top_k(scores: Any, k: int) -> tuple[Any, Any]:
    """TopK wants k candidates, so k more that come after all are appended. Ties go to the lower place."""
    padded = op.Pad(scores, op.Constant(value_ints=[0, 0, 0, k]), op.Constant(value_float=PADDING))
    values, places = op.TopK(padded, op.Constant(value_ints=[k]))
    count = op.Shape(scores, start=1, end=2)
    return values, op.Where(op.Less(places, count), places, op.Constant(value_int=0))


def _nms(boxes: Any, scores: Any, iou_threshold: float, keep: int) -> Any:
    """NonMaxSuppression answers rows of (image, class, box), which index scores of one class [N, 1, n] as they are."""
    by_class = op.Unsqueeze(scores, op.Constant(value_ints=[1]))
    selected = op.NonMaxSuppression(
        boxes,
        by_class,
        op.Constant(value_ints=[keep]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[0.0]),
    )
    nothing = op.ConstantOfShape(op.Shape(by_class), value=onnx.helper.make_tensor("out", 1, [1], [EXCLUDED]))
    survivors = op.ScatterND(nothing, selected, op.GatherND(by_class, selected))
    return op.Squeeze(survivors, op.Constant(value_ints=[1]))


def _roi_pool(features: Any, rois: Any, spatial_scale: float, height: int, width: int) -> tuple[Any, Any]:
    """torchvision's operator answers where each maximum was found too, which nothing here asks for."""
    pooled = op.MaxRoiPool(features, rois, pooled_shape=[height, width], spatial_scale=spatial_scale)
    return pooled, pooled


def _quotient(numbers: Any, divisor: int) -> Any:
    return op.Div(numbers, divisor)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.faster_rcnn.top_k.default: _top_k,
    torch.ops.faster_rcnn.nms.default: _nms,
    torch.ops.faster_rcnn.quotient.default: _quotient,
    torch.ops.torchvision.roi_pool.default: _roi_pool,
}
