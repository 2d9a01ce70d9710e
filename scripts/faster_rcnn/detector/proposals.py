"""The proposal layer: RPN outputs to regions of interest (Ren et al. 2015, section 3.3).

N  images;  A  anchors an image;  P  proposals an image;  boxes are x1, y1, x2, y2 in canvas pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from faster_rcnn.detector.boxes import clip_to_sizes, decode, sides_at_least
from faster_rcnn.detector.operators import OUT, nms, take_rows, top_k


@dataclass(frozen=True)
class ProposalLimits:
    """How many proposals are looked at and kept."""

    before_nms: int
    after_nms: int
    nms_threshold: float = 0.7  # section 3.3
    # Pixels of the canvas. The reference code has 16 pixels of the original image, which suits VOC's large objects
    # only; a box that pools less than a pixel carries nothing for any data.
    min_side: float = 1.0


# Margins are held to ±LIMIT, far beyond what a probability in float32 tells apart, and raised to be positive, since
# the operators take a score <= 0 for a candidate that is out of the running. Both are exact in float32.
LIMIT = 30.0
RAISE = 64.0


class Proposals(NamedTuple):
    """number: int64 [N], how many rows are real;  boxes: [N, P, 4] and objectness: [N, P], best first, zero-padded."""

    number: Tensor
    boxes: Tensor
    objectness: Tensor


def propose(
    margins: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    valid: Tensor,
    sizes: Tensor,
    limits: ProposalLimits,
    levels: Sequence[int] = (),
) -> Proposals:
    """Decode all, clip, drop the small, keep the best, suppress, keep the best again: the reference code's order.

    On a feature pyramid the best are kept, and suppress each other, on each map by itself; then the best of all are
    kept. The paper leaves this open, torchvision and Detectron do it so.

    margins: [N, A], the logits of the objectness;  deltas: [N, A, 4];  anchors: [A, 4];
    valid: bool [N, A], False where the anchor stands outside the image;  sizes: int64 [N, 2] as height, width;
    levels: how many of the anchors are of each map, in their order; empty: all are of one.
    """
    boxes = clip_to_sizes(decode(deltas, anchors), sizes)
    running = valid & sides_at_least(boxes, limits.min_side)
    ranks = margins.clamp(-LIMIT, LIMIT) + RAISE
    scores = torch.where(running, ranks, torch.full_like(ranks, OUT))
    if len(levels) > 1:
        boxes, scores = _survivors_of_levels(boxes, scores, limits, levels)
    else:
        boxes, scores = _survivors(boxes, scores, limits)
    scores, places = top_k(scores, limits.after_nms)
    kept = scores > 0
    boxes = torch.where(kept[..., None], take_rows(boxes, places), torch.zeros_like(boxes[:, :1]))
    objectness = torch.where(kept, torch.sigmoid(scores - RAISE), torch.zeros_like(scores))
    objectness, places = top_k(objectness, limits.after_nms)  # best first also where the sigmoid's last bit disagrees
    return Proposals(kept.to(torch.int64).sum(dim=1), take_rows(boxes, places), objectness)


def _survivors(boxes: Tensor, scores: Tensor, limits: ProposalLimits) -> tuple[Tensor, Tensor]:
    """The best before the suppression, [N, K, 4], and what it leaves of their scores, [N, K]."""
    scores, places = top_k(scores, limits.before_nms)
    boxes = take_rows(boxes, places)
    return boxes, nms(boxes, scores, limits.nms_threshold, limits.after_nms)


def _survivors_of_levels(
    boxes: Tensor, scores: Tensor, limits: ProposalLimits, levels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`_survivors` of each level: [N, levels * K, 4] and [N, levels * K].

    One suppression serves all levels as if they were images of their own.
    """
    best, start = [], 0
    for number in levels:
        values, places = top_k(scores[:, start : start + number], limits.before_nms)
        best.append((take_rows(boxes[:, start : start + number], places), values))
        start = start + number
    N = boxes.shape[0]
    by_level = torch.stack([rows for rows, _ in best], dim=1)  # [N, levels, K, 4]
    values = torch.stack([row for _, row in best], dim=1)
    left = nms(by_level.flatten(0, 1), values.flatten(0, 1), limits.nms_threshold, limits.after_nms)
    return by_level.reshape(N, -1, 4), left.reshape(N, -1)
