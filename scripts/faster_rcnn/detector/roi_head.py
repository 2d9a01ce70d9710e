"""The RoI head: from pooled regions to classes and a box for each class (Girshick 2015, section 2).

N  images;  P  proposals per image;  C  classes without background;  D  detections per image;  K  candidates per image.
In the head, class 0 is the background; the labels that `detect` returns start at 0 without the background.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faster_rcnn.detector.boxes import clip_to_sizes, decode, sides_at_least
from faster_rcnn.detector.operators import EXCLUDED, nms, probabilities_above, quotient, take_rows, top_k
from faster_rcnn.detector.padded_rows import linear_of_channels_last
from faster_rcnn.detector.rules import DetectionLimits, TargetNormalisation


class RoIHead(nn.Module):
    """Two fully connected layers (fc6, fc7), then class scores by softmax and four deltas for each class."""

    def __init__(self, in_channels: int, size: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.classes = classes
        self.dropout = dropout
        self.fc6 = nn.Linear(in_channels * size * size, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.cls_score = nn.Linear(hidden, classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 * classes)
        for layer, std in ((self.fc6, 0.01), (self.fc7, 0.01), (self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)  # Fast R-CNN, section 2.3
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """regions: [..., channels, S, S].  Returns class scores [..., C + 1] and deltas [..., C, 4]."""
        return self._after_fc6(self.fc6(regions.flatten(-3).to(self.fc6.weight.dtype)))

    def of_channels_last(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` for regions [M, S, S, channels], without reordering them first."""
        return self._after_fc6(linear_of_channels_last(self.fc6, regions.to(self.fc6.weight.dtype)))

    def _after_fc6(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.dropout(F.relu(hidden), self.dropout, self.training)
        hidden = F.dropout(F.relu(self.fc7(hidden)), self.dropout, self.training).to(self.cls_score.weight.dtype)
        return self.cls_score(hidden), self.bbox_pred(hidden).unflatten(-1, (self.classes, 4))


class Detections(NamedTuple):
    """number: int64 [N], detections per image;  boxes [N, D, 4], scores [N, D], labels int64 [N, D], zero-padded.

    left_out: [N], the highest score of a candidate or detection that one of the limits on their number left out, or 0.
    """

    number: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    left_out: Tensor


def detect(
    class_scores: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    count: Tensor,
    sizes: Tensor,
    limits: DetectionLimits,
    normalisation: TargetNormalisation,
) -> Detections:
    """Applies softmax, keeps the best candidates of all classes, decodes them and suppresses overlaps in each class.

    class_scores: [N, P, C + 1];  deltas: [N, P, C, 4], normalised;  proposals: [N, P, 4], zero-padded;
    count: int64 [N], proposals of each image;  sizes: int64 [N, 2] as height, width.

    The boxes of each class are moved to an area of their own, so that one NMS call serves all classes of an image: on
    CUDA each call costs a kernel launch and a synchronisation. The areas form a square around the origin, because
    float32 coordinates are coarser far from it.
    """
    N, P, C = deltas.shape[:3]
    probabilities = torch.softmax(class_scores, dim=2)[:, :, 1:]
    real = torch.arange(P, device=count.device)[None, :, None] < count[:, None, None]
    eligible = real & (probabilities > limits.score_floor)
    scores = torch.where(eligible, probabilities, torch.full_like(probabilities, EXCLUDED)).reshape(N, P * C)
    number = min(limits.candidates, P * C)
    span = probabilities_above(limits.score_floor)
    scores, places = top_k(scores, number + 1, span)  # one more than are used, to know the best that is left out
    candidate_left_out = scores[:, number]
    scores, places = scores[:, :number], places[:, :number]
    region = quotient(places, C)
    labels = places - region * C
    chosen = normalisation.undo(take_rows(deltas.reshape(N, P * C, 4), places))
    boxes = clip_to_sizes(decode(chosen, take_rows(proposals, region)), sizes)
    scores = torch.where(sides_at_least(boxes, 1e-2), scores, torch.full_like(scores, EXCLUDED))
    survivors = nms(boxes + _class_offsets(labels, C, sizes), scores, limits.nms_threshold, limits.detections + 1)
    scores, places = top_k(survivors, limits.detections + 1, span)
    left_out = torch.maximum(candidate_left_out, scores[:, limits.detections]).clamp(min=0)
    scores, places = scores[:, : limits.detections], places[:, : limits.detections]
    kept = scores > 0
    return Detections(
        kept.to(torch.int64).sum(dim=1),
        torch.where(kept[..., None], take_rows(boxes, places), torch.zeros_like(boxes[:, :1])),
        scores.clamp(min=0),
        torch.where(kept, torch.gather(labels, 1, places), torch.zeros_like(places)),
        left_out,
    )


def _class_offsets(labels: Tensor, classes: int, sizes: Tensor) -> Tensor:
    """The shift [N, K, 4] that moves each box to the area of its label [N, K], so that classes never overlap."""
    columns = math.ceil(math.sqrt(classes))
    row = quotient(labels, columns)
    column = labels - row * columns
    areas = torch.stack([column, row], dim=2) - columns // 2
    return (areas * (sizes.amax(dim=1)[:, None, None] + 1)).repeat(1, 1, 2).to(torch.float32)
