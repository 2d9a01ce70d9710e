"""The full detector: normalise → backbone → RPN → proposals → RoI pooling → head → detections.

N  images;  H, W  canvas, multiples of the backbone's stride;  A  anchors;  P  proposals;  D  detections an image.
Images are uint8 [N, H, W, 3], RGB, each at the top left of its canvas; sizes are int64 [N, 2], height and width.
An image's answer depends on that image alone: not on its canvas, its neighbours or the bytes outside its size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from faster_rcnn.anchors import cell_anchors, grid_anchors
from faster_rcnn.backbones import BACKBONES
from faster_rcnn.config import DetectorConfig, canvases
from faster_rcnn.padding import inside
from faster_rcnn.proposals import ProposalLimits, Proposals, propose
from faster_rcnn.roi_head import Detections, RoIHead, detect
from faster_rcnn.roi_pooling import LONGEST_BIN, POOLINGS
from faster_rcnn.rpn import RPNHead, foreground_margin


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


class RPNOutput(NamedTuple):
    """class scores [N, A, 2], deltas [N, A, 4], anchors [A, 4], valid bool [N, A]: not of the padding."""

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
    """Faster R-CNN with one feature map, as in the paper. `forward` is what is exported; `training/` trains its parts."""

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
        features = self.features(images, sizes)
        proposals = self.select(self.regions(features, sizes), sizes, self.config.proposals)
        found = self.detect_in(features, proposals.boxes, proposals.number, sizes)
        return Answer(*found, *proposals)

    def propose(self, images: Tensor, sizes: Tensor, limits: ProposalLimits) -> Proposals:
        """The region proposal network alone."""
        return self.select(self.regions(self.features(images, sizes), sizes), sizes, limits)

    def detect_given(self, images: Tensor, sizes: Tensor, boxes: Tensor, count: Tensor) -> Detections:
        """Fast R-CNN alone, on given regions: boxes [N, P, 4] in canvas pixels, of which the first `count` are real."""
        return self.detect_in(self.features(images, sizes), boxes, count, sizes)

    def features(self, images: Tensor, sizes: Tensor) -> Tensor:
        """The backbone's feature map, which the RPN and the head share."""
        return self.backbone(self._normalise(images, sizes), sizes)

    def regions(self, features: Tensor, sizes: Tensor) -> RPNOutput:
        """What the RPN says of every anchor."""
        stride = self.backbone.stride
        scores, deltas = self.rpn(features)
        h, w = features.shape[2:]
        valid = inside(sizes, stride, h, w)[..., None].expand(-1, -1, -1, self.rpn.k).flatten(1)
        return RPNOutput(scores.float(), deltas.float(), grid_anchors(self.cell, h, w, stride), valid)

    def select(self, rpn: RPNOutput, sizes: Tensor, limits: ProposalLimits) -> Proposals:
        """The proposals among the anchors."""
        return propose(foreground_margin(rpn.scores), rpn.deltas, rpn.anchors, rpn.valid, sizes, limits)

    def classify(self, features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """What the head says of regions [N, P, 4]: class scores [N, P, C + 1] and normalised deltas [N, P, C, 4]."""
        return self.head(self.pool(features, boxes, self.config.roi_size, self.backbone.stride))

    def detect_in(self, features: Tensor, boxes: Tensor, count: Tensor, sizes: Tensor) -> Detections:
        """The detections in the first `count` [N] of regions [N, P, 4]."""
        config = self.config
        scores, deltas = self.classify(features, boxes)
        return detect(scores, deltas, boxes, count, sizes, config.detections, config.target_normalisation)

    def _normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] to float [N, 3, H, W], zero outside the sizes whatever the bytes are there."""
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        mask = inside(sizes, 1, pixels.shape[2], pixels.shape[3])
        return torch.where(mask[:, None], pixels, torch.zeros_like(pixels[:, :, :1, :1]))
