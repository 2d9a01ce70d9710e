"""The full detector: normalise → backbone → RPN → proposals → RoI pooling → head → detections.

N  images;  H, W  canvas, multiples of the backbone's stride;  A  anchors;  P  proposals;  D  detections an image.
Images are uint8 [N, H, W, 3], RGB, each at the top left of its canvas; sizes are int64 [N, 2], height and width.
An image's answer depends on that image alone: not on its canvas, its neighbours or the bytes outside its size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from faster_rcnn import losses
from faster_rcnn.anchors import cell_anchors, grid_anchors, inside_image
from faster_rcnn.backbones import BACKBONES, autocast_dtype
from faster_rcnn.boxes import encode
from faster_rcnn.config import DetectorConfig, canvases
from faster_rcnn.padding import inside
from faster_rcnn.proposals import ProposalLimits, Proposals, propose
from faster_rcnn.roi_head import TARGET_WEIGHTS, RoIHead, detect
from faster_rcnn.roi_pooling import LONGEST_BIN, POOLINGS
from faster_rcnn.rpn import RPNHead, foreground_margin
from faster_rcnn.sampling import POSITIVE, label_anchors, sample_anchors, sample_proposals


class Answer(NamedTuple):
    """What the detector says of N images; rows past a count are zero. Labels are numbered from 0, without background.

    num_detections int64 [N], boxes [N, D, 4], scores [N, D], labels int64 [N, D];
    num_proposals int64 [N], proposals [N, P, 4], objectness [N, P]. Boxes are in canvas pixels, best score first.
    """

    num_detections: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    num_proposals: Tensor
    proposals: Tensor
    objectness: Tensor


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image.  boxes: float [G, 4] in canvas pixels;  labels: int64 [G] from 0."""

    boxes: Tensor
    labels: Tensor


class RPNOutput(NamedTuple):
    """features [N, C, h, w], class scores [N, A, 2], deltas [N, A, 4], anchors [A, 4], valid bool [N, A]."""

    features: Tensor
    scores: Tensor
    deltas: Tensor
    anchors: Tensor
    valid: Tensor


def check_map_size(config: DetectorConfig, stride: int) -> None:
    """Raises ValueError if a canvas is too large for the exported form of RoI max pooling."""
    longest = max(max(canvas) for canvas in canvases(config.resize, stride)) // stride
    allowed = LONGEST_BIN * config.roi_size - config.roi_size  # a bin's ends are rounded outwards
    if config.roi_pooling == "max" and longest > allowed:
        raise ValueError(
            f"RoI max pooling takes maps of up to {allowed} cells a side, the resize rule asks for {longest}; "
            "lower max_size or use roi_pooling 'align'"
        )


class FasterRCNN(nn.Module):
    """Faster R-CNN with one feature map, as in the paper. `forward` is what is exported, `losses` what is trained."""

    cell: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = BACKBONES[config.backbone]()
        channels = self.backbone.out_channels
        self.rpn = RPNHead(channels, config.rpn_channels, config.anchors_per_location)
        self.head = RoIHead(channels, config.roi_size, config.head_units, len(config.labels), config.head_dropout)
        self.pool = POOLINGS[config.roi_pooling]
        check_map_size(config, self.backbone.stride)
        self.register_buffer("cell", cell_anchors(config.anchor_scales, config.anchor_ratios), persistent=False)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> Answer:
        """Detections and proposals of a batch."""
        config = self.config
        rpn = self._rpn(images, sizes)
        proposals = self._propose(rpn, sizes, config.proposals)
        regions = self.pool(rpn.features, proposals.boxes, config.roi_size, self.backbone.stride)
        class_scores, deltas = self.head(regions)
        found = detect(class_scores, deltas, proposals.boxes, proposals.number, sizes, config.detections)
        return Answer(*found, *proposals)

    def losses(
        self, images: Tensor, sizes: Tensor, truth: Sequence[GroundTruth], mixed_precision: bool = False
    ) -> dict[str, Tensor]:
        """The four losses of joint training, each the mean over the images. Proposals carry no gradient (section 3.2).

        mixed_precision: compute backbone and RPN in the reduced precision that the device is faster in, if any.
        """
        rpn = self._rpn(images, sizes, autocast_dtype(images.device) if mixed_precision else None)
        with torch.no_grad():
            proposals = self._propose(rpn, sizes, self.config.training_proposals)
        rpn_losses = [self._rpn_losses(rpn, sizes, image, objects) for image, objects in enumerate(truth)]
        head_losses = self._head_losses(rpn.features, proposals, truth)
        return {
            "rpn_classification": torch.stack([one for one, _ in rpn_losses]).mean(),
            "rpn_box": torch.stack([other for _, other in rpn_losses]).mean(),
            **head_losses,
        }

    def _normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] to float [N, 3, H, W], zero outside the sizes whatever the bytes are there."""
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        mask = inside(sizes, 1, pixels.shape[2], pixels.shape[3])
        return torch.where(mask[:, None], pixels, torch.zeros_like(pixels[:, :, :1, :1]))

    def _rpn(self, images: Tensor, sizes: Tensor, reduced: torch.dtype | None = None) -> RPNOutput:
        stride = self.backbone.stride
        with torch.autocast(images.device.type, dtype=reduced, enabled=reduced is not None):
            features = self.backbone(self._normalise(images, sizes), sizes)
            scores, deltas = self.rpn(features)
        h, w = features.shape[2:]
        valid = inside(sizes, stride, h, w)[..., None].expand(-1, -1, -1, self.rpn.k).flatten(1)
        anchors = grid_anchors(self.cell, h, w, stride)
        return RPNOutput(features.float(), scores.float(), deltas.float(), anchors, valid)

    def _propose(self, rpn: RPNOutput, sizes: Tensor, limits: ProposalLimits) -> Proposals:
        return propose(foreground_margin(rpn.scores), rpn.deltas, rpn.anchors, rpn.valid, sizes, limits)

    def _rpn_losses(self, rpn: RPNOutput, sizes: Tensor, image: int, truth: GroundTruth) -> tuple[Tensor, Tensor]:
        rule = self.config.anchor_sampling
        usable = rpn.valid[image]
        if not rule.keep_crossing:
            usable = usable & inside_image(rpn.anchors, sizes[image])
        targets = label_anchors(rpn.anchors, usable, truth.boxes, rule)
        positive, negative = sample_anchors(targets.labels, rule)
        sampled = torch.cat([positive, negative])
        classification = losses.rpn_classification_loss(
            rpn.scores[image, sampled], (targets.labels[sampled] == POSITIVE).to(torch.int64)
        )
        wanted = encode(truth.boxes[targets.objects[positive]], rpn.anchors[positive])
        locations = int(rpn.valid[image].sum()) // self.rpn.k
        return classification, losses.rpn_box_loss(rpn.deltas[image, positive], wanted, locations)

    def _head_losses(self, features: Tensor, proposals: Proposals, truth: Sequence[GroundTruth]) -> dict[str, Tensor]:
        config = self.config
        sampled = [
            sample_proposals(boxes[:number], objects.boxes, objects.labels + 1, config.proposal_sampling)
            for boxes, number, objects in zip(proposals.boxes, proposals.number.tolist(), truth, strict=True)
        ]
        regions = torch.stack([one.boxes for one in sampled])
        class_scores, deltas = self.head(self.pool(features, regions, config.roi_size, self.backbone.stride))
        classification, box = [], []
        for image, one in enumerate(sampled):
            real = one.labels >= 0
            labels = one.labels[real]
            targets = encode(one.targets[real], one.boxes[real], TARGET_WEIGHTS)
            classification.append(losses.head_classification_loss(class_scores[image, real], labels))
            box.append(losses.head_box_loss(deltas[image, real], targets, labels))
        return {"head_classification": torch.stack(classification).mean(), "head_box": torch.stack(box).mean()}
