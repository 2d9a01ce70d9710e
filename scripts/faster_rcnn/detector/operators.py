"""Operators with the same meaning in PyTorch and in ONNX: a stable top-k, a batched NMS, a plain integer division.

The first two have outputs of a fixed rank and a size known beforehand, which is what makes one graph serve any batch
size: nothing in the graph depends on how many boxes survive. The ONNX translations are in `graph/translations.py`.

N  images;  n  candidates an image.  A candidate that is out of the running has the score -1.
"""

import torch
import torchvision
from torch import Tensor

OUT = -1.0
LAST = -3.0e38  # below any score: what is there only to make up the number


@torch.library.custom_op("faster_rcnn::top_k", mutates_args=())
def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row, best first; equal scores in the order of their place, as ONNX's TopK does it.

    scores: [N, n].  Returns values [N, k] and int64 places [N, k]. With n < k the rest is LAST at place 0.
    `torch.topk` leaves the order of equal scores open; a blank image has thousands of them.
    """
    n = scores.shape[1]
    values, places = torch.sort(scores, dim=1, descending=True, stable=True)
    values, places = values[:, :k], places[:, :k]
    if n < k:
        values = torch.nn.functional.pad(values, (0, k - n), value=LAST)
        places = torch.nn.functional.pad(places, (0, k - n), value=0)
    return values.contiguous(), places.contiguous()


@top_k.register_fake
def _(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], k)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("faster_rcnn::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, keep: int) -> Tensor:
    """Greedy non-maximum suppression in each image by itself.

    boxes: [N, n, 4];  scores: [N, n].  Candidates with a score <= 0 take no part.
    Returns [N, n]: the score of each of the best `keep` survivors, -1 for all others.
    """
    survivors = torch.full_like(scores, OUT)
    for image, (image_boxes, image_scores) in enumerate(zip(boxes, scores, strict=True)):
        candidates = (image_scores > 0).nonzero()[:, 0]
        kept = torchvision.ops.nms(image_boxes[candidates], image_scores[candidates], iou_threshold)
        chosen = candidates[kept[:keep]]
        survivors[image, chosen] = image_scores[chosen]
    return survivors


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, keep: int) -> Tensor:
    return torch.empty_like(scores)


@torch.library.custom_op("faster_rcnn::quotient", mutates_args=())
def quotient(numbers: Tensor, divisor: int) -> Tensor:
    """`numbers` // `divisor` of int64, none of them negative: one integer division, where the exporter would write
    seven operations to be right for negative numbers too."""
    return numbers // divisor


@quotient.register_fake
def _(numbers: Tensor, divisor: int) -> Tensor:
    return torch.empty_like(numbers)


def take_rows(rows: Tensor, places: Tensor) -> Tensor:
    """rows[n, places[n, i]] for each image: [N, n, c] and [N, k] -> [N, k, c]."""
    return torch.gather(rows, 1, places[..., None].expand(-1, -1, rows.shape[2]))
