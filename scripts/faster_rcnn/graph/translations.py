"""How the operators of `detector/operators.py`, and torchvision's RoI max pooling, are written in ONNX.

They use opset 18, because ONNX Runtime 1.31 has no CUDA kernel for the MaxPool of opset 22 and later.
"""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import opset18

from faster_rcnn.detector.graph_form import Form
from faster_rcnn.detector.operators import EXCLUDED, PADDING
from faster_rcnn.graph import cuda_ranking, cuda_suppression

OPSET = 18
op: Any = opset18  # typed for eager evaluation, but called while tracing


def _top_k(scores: Any, k: int, low: int, high: int, digits: int) -> tuple[Any, Any]:  # noqa: ARG001
    """TopK needs at least k candidates, so k that rank last are appended. Of equal scores the first one wins."""
    padded = op.Pad(scores, op.Constant(value_ints=[0, 0, 0, k]), op.Constant(value_float=PADDING))
    values, places = op.TopK(padded, op.Constant(value_ints=[k]))
    count = op.Shape(scores, start=1, end=2)
    return values, op.Where(op.Less(places, count), places, op.Constant(value_int=0))


def _nms(boxes: Any, scores: Any, iou_threshold: float, keep: int) -> Any:
    """NonMaxSuppression returns rows of (image, class, box), which directly index scores of one class [N, 1, n]."""
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
    """Torchvision's operator also returns where each maximum was found, which nothing here uses."""
    pooled = op.MaxRoiPool(features, rois, pooled_shape=[height, width], spatial_scale=spatial_scale)
    return pooled, pooled


def _quotient(numbers: Any, divisor: int) -> Any:
    return op.Div(numbers, divisor)


Translations = dict[Callable[..., Any], Callable[..., Any]]

PORTABLE: Translations = {
    torch.ops.faster_rcnn.top_k.default: _top_k,
    torch.ops.faster_rcnn.nms.default: _nms,
    torch.ops.faster_rcnn.quotient.default: _quotient,
    torch.ops.torchvision.roi_pool.default: _roi_pool,
}

TRANSLATIONS: dict[Form, Translations] = {
    "portable": PORTABLE,
    "cuda": PORTABLE
    | {
        torch.ops.faster_rcnn.top_k.default: cuda_ranking.top_k,
        torch.ops.faster_rcnn.nms.default: cuda_suppression.nms,
    },
}
