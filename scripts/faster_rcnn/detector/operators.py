"""Operators with the same result in PyTorch and in ONNX: stable top-k, batched NMS and plain integer division.

The output shapes of the first two do not depend on how many boxes survive, so that one graph serves any batch
size. The ONNX translations are in `graph/translations.py`.

N  images;  n  candidates per image.  An excluded candidate has the score -1.
"""

import math
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor

EXCLUDED = -1.0  # score of a candidate that is left out
PADDING = -3.0e38  # below any score; fills a result that has fewer candidates than requested


class Span(NamedTuple):
    """Which scores a ranking must tell apart, so that a graph may rank them as integers.

    Each score is 0, EXCLUDED, PADDING, or a number whose magnitude lies between 2**low and 2**high, high > 0, and which
    has at most `digits` significant bits; float32 has 24. Scores closer to 0 than 2**low may rank as equal.
    """

    low: int
    high: int
    digits: int = 24


def probabilities_above(floor: float) -> Span:
    """The span of probabilities that exceed `floor`; without a floor, of those above 1e-18."""
    lowest = -59
    return Span(max(lowest, math.floor(math.log2(floor))) if floor > 0 else lowest, 1)


def top_k(scores: Tensor, k: int, span: Span) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row, best first; equal scores keep their order, as in ONNX's TopK on a CPU.

    scores: [N, n], within `span`.  Returns values [N, k] and their indices, int64 [N, k]. If n < k, PADDING with index
    0 fills the rest. `torch.topk` does not define the order of equal scores, and a blank image has thousands of them.
    """
    values, places = _top_k(scores, k, *span)
    return values, places


@torch.library.custom_op("faster_rcnn::top_k", mutates_args=())
def _top_k(scores: Tensor, k: int, low: int, high: int, digits: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """`top_k`; low, high, digits: its span, which only graphs use."""
    n = scores.shape[1]
    values, places = torch.sort(scores, dim=1, descending=True, stable=True)
    values, places = values[:, :k], places[:, :k]
    if n < k:
        values = torch.nn.functional.pad(values, (0, k - n), value=PADDING)
        places = torch.nn.functional.pad(places, (0, k - n), value=0)
    return values.contiguous(), places.contiguous()


@_top_k.register_fake
def _(scores: Tensor, k: int, _low: int, _high: int, _digits: int) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], k)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("faster_rcnn::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, keep: int) -> Tensor:
    """Greedy non-maximum suppression, separately in each image.

    boxes: [N, n, 4];  scores: [N, n].  Candidates with a score <= 0 are ignored; the others come best first.
    Returns [N, n]: the scores of the best `keep` survivors, EXCLUDED for all others. The form for CUDA may also keep
    the scores of candidates that rank behind the best `keep`.
    The overlap is compared in the boxes' own type, as a graph does it; torchvision compares with a float64 threshold.
    """
    survivors = torch.full_like(scores, EXCLUDED)
    iou_threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    for image, (image_boxes, image_scores) in enumerate(zip(boxes, scores, strict=True)):
        candidates = (image_scores > 0).nonzero()[:, 0]
        kept = torchvision.ops.nms(image_boxes[candidates], image_scores[candidates], iou_threshold)
        chosen = candidates[kept[:keep]]
        survivors[image, chosen] = image_scores[chosen]
    return survivors


@nms.register_fake
def _(_boxes: Tensor, scores: Tensor, _iou_threshold: float, _keep: int) -> Tensor:
    return torch.empty_like(scores)


@torch.library.custom_op("faster_rcnn::quotient", mutates_args=())
def quotient(numbers: Tensor, divisor: int) -> Tensor:
    """`numbers` // `divisor` for non-negative int64 numbers.

    This is one integer division in the graph. The exporter's own translation of // has seven operations, because it
    also handles negative numbers.
    """
    return numbers // divisor


@quotient.register_fake
def _(numbers: Tensor, _divisor: int) -> Tensor:
    return torch.empty_like(numbers)


def take_rows(rows: Tensor, places: Tensor) -> Tensor:
    """rows[n, places[n, i]] for each image: [N, n, c] and [N, k] -> [N, k, c]."""
    return torch.gather(rows, 1, places[..., None].expand(-1, -1, rows.shape[2]))
