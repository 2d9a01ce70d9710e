"""The proposal layer: from RPN outputs to proposals (Ren et al. 2015, section 3.3).

N  images;  A  anchors per image;  P  proposals per image;  K  candidates before NMS;
boxes are x1, y1, x2, y2 in canvas pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from faster_rcnn.detector.boxes import clip_to_sizes, decode, sides_at_least
from faster_rcnn.detector.operators import EXCLUDED, Span, nms, take_rows, top_k
from faster_rcnn.detector.rules import ProposalLimits

# Margins are clamped to ±MARGIN_LIMIT, where the probability is within 1e-13 of 0 or 1. MARGIN_OFFSET makes them
# positive, because the operators exclude candidates with a score <= 0. Both operations are exact in float32.
MARGIN_LIMIT = 30.0
MARGIN_OFFSET = 64.0
# From 34 to 94. The probability of the lowest margin is 9.4e-14, that of the highest 1.
SHIFTED_MARGINS, OBJECTNESS = Span(low=5, high=7), Span(low=-44, high=1)


class Proposals(NamedTuple):
    """number: int64 [N], proposals per image;  boxes: [N, P, 4] and objectness: [N, P], best first, zero-padded."""

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
    """Decodes all anchors, clips them, drops small boxes, keeps the best, suppresses overlaps, keeps the best again.

    This is the reference code's order. On a feature pyramid, each map keeps its best and suppresses its own overlaps;
    then the best of all maps are kept. The paper does not specify this; torchvision and Detectron do the same.

    margins: [N, A], the logits of the objectness;  deltas: [N, A, 4];  anchors: [A, 4];
    valid: bool [N, A], False where the anchor's location is outside the image;  sizes: int64 [N, 2] as height, width;
    levels: number of anchors of each map, in order; empty if there is only one map.
    """
    boxes = clip_to_sizes(decode(deltas, anchors), sizes)
    eligible = valid & sides_at_least(boxes, limits.min_side)
    shifted = margins.clamp(-MARGIN_LIMIT, MARGIN_LIMIT) + MARGIN_OFFSET
    scores = torch.where(eligible, shifted, torch.full_like(shifted, EXCLUDED))
    if len(levels) > 1:
        boxes, scores = _survivors_of_levels(boxes, scores, limits, levels)
    else:
        boxes, scores = _survivors(boxes, scores, limits)
    scores, places = top_k(scores, limits.after_nms, SHIFTED_MARGINS)
    kept = scores > 0
    boxes = torch.where(kept[..., None], take_rows(boxes, places), torch.zeros_like(boxes[:, :1]))
    objectness = torch.where(kept, torch.sigmoid(scores - MARGIN_OFFSET), torch.zeros_like(scores))
    objectness, places = top_k(objectness, limits.after_nms, OBJECTNESS)  # the sigmoid's last bit may change the order
    return Proposals(kept.to(torch.int64).sum(dim=1), take_rows(boxes, places), objectness)


def _survivors(boxes: Tensor, scores: Tensor, limits: ProposalLimits) -> tuple[Tensor, Tensor]:
    """The best candidates, [N, K, 4], and their scores after NMS, [N, K]."""
    scores, places = top_k(scores, limits.before_nms, SHIFTED_MARGINS)
    boxes = take_rows(boxes, places)
    return boxes, nms(boxes, scores, limits.nms_threshold, limits.after_nms)


def _survivors_of_levels(
    boxes: Tensor, scores: Tensor, limits: ProposalLimits, levels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`_survivors` of each level: [N, levels * K, 4] and [N, levels * K].

    One NMS call serves all levels, because each is treated as a separate image.
    """
    best, start = [], 0
    for anchors in levels:
        values, places = top_k(scores[:, start : start + anchors], limits.before_nms, SHIFTED_MARGINS)
        best.append((take_rows(boxes[:, start : start + anchors], places), values))
        start = start + anchors
    N = boxes.shape[0]
    by_level = torch.stack([rows for rows, _ in best], dim=1)  # [N, levels, K, 4]
    values = torch.stack([row for _, row in best], dim=1)
    surviving = nms(by_level.flatten(0, 1), values.flatten(0, 1), limits.nms_threshold, limits.after_nms)
    return by_level.reshape(N, -1, 4), surviving.reshape(N, -1)
