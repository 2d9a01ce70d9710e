"""Chooses the anchors and the proposals of a training step.

A  anchors;  G  ground-truth objects;  P  proposals;  R  sampled regions.  Boxes are x1, y1, x2, y2 in canvas pixels.
Each function handles one image. Random choices use the given generator, or torch's global one.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from faster_rcnn.detector.rules import AnchorSampling, ProposalSampling

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


class AnchorTargets(NamedTuple):
    """labels: int64 [A], 1 / 0 / -1;  objects: int64 [A], the ground-truth object that each anchor overlaps most."""

    labels: Tensor
    objects: Tensor


def label_anchors(anchors: Tensor, usable: Tensor, boxes: Tensor, rule: AnchorSampling) -> AnchorTargets:
    """Labels anchors as positive, negative or ignored (section 3.1.2).

    Positive: IoU above 0.7 with an object, or the highest IoU with an object, ties included. Negative: IoU below 0.3
    with all objects. All others are ignored, and so are those that are not `usable`.

    anchors: [A, 4];  usable: bool [A];  boxes: [G, 4], G may be 0.
    """
    labels = torch.full((len(anchors),), IGNORED, device=anchors.device)
    if len(boxes) == 0:
        labels[usable] = NEGATIVE
        return AnchorTargets(labels, torch.zeros_like(labels))
    iou = torch.where(usable[None], box_iou(boxes, anchors), -1.0)  # [G, A]
    best, objects = iou.max(dim=0)
    labels[usable & (best < rule.negative_iou)] = NEGATIVE
    best_of_object = iou.max(dim=1, keepdim=True).values
    is_best = (iou == best_of_object) & (best_of_object > 0)
    labels[is_best.any(dim=0)] = POSITIVE
    labels[best > rule.positive_iou] = POSITIVE
    return AnchorTargets(labels, objects)


def sample_anchors(
    labels: Tensor, rule: AnchorSampling, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Samples at most 128 positives, and negatives up to a total of 256 (section 3.1.3).

    labels: [A].  Returns the indices of the positives and of the negatives.
    """
    positive = _choose(labels == POSITIVE, int(rule.batch * rule.positive_share), generator)
    negative = _choose(labels == NEGATIVE, rule.batch - len(positive), generator)
    return positive, negative


class SampledRegions(NamedTuple):
    """boxes: [R, 4];  labels: int64 [R], 0 is background, -1 is padding;  targets: [R, 4], the matched objects."""

    boxes: Tensor
    labels: Tensor
    targets: Tensor


def sample_proposals(
    proposals: Tensor, boxes: Tensor, labels: Tensor, rule: ProposalSampling, generator: torch.Generator | None = None
) -> SampledRegions:
    """Samples regions for the head: at most a quarter foreground, the rest background.

    proposals: [P, 4];  boxes: [G, 4], the objects' boxes, which are candidates too;  labels: int64 [G] from 1.
    """
    candidates = torch.cat([proposals, boxes])
    if len(boxes) == 0:
        overlap, objects = candidates.new_zeros(len(candidates)), None
    else:
        overlap, objects = box_iou(candidates, boxes).max(dim=1)
    foreground = _choose(overlap >= rule.foreground_iou, int(rule.batch * rule.foreground_share), generator)
    low, high = rule.background_iou
    background = _choose((overlap >= low) & (overlap < high), rule.batch - len(foreground), generator)
    chosen = torch.cat([foreground, background])
    sampled_labels = torch.full((rule.batch,), IGNORED, device=candidates.device)
    sampled_labels[: len(chosen)] = 0
    regions = candidates.new_tensor([0.0, 0.0, 1.0, 1.0]).repeat(rule.batch, 1)
    targets = regions.clone()
    regions[: len(chosen)] = candidates[chosen]
    if objects is not None:
        sampled_labels[: len(foreground)] = labels[objects[foreground]]
        targets[: len(foreground)] = boxes[objects[foreground]]
    return SampledRegions(regions, sampled_labels, targets)


def _choose(mask: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """At most `count` random indices at which `mask` is True."""
    indices = mask.nonzero()[:, 0]
    return indices[torch.randperm(len(indices), device=indices.device, generator=generator)[:count]]
