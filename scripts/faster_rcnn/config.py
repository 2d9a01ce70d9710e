"""What a detector is made of: everything that a checkpoint must know to be built again."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from faster_rcnn.losses import LossRule
from faster_rcnn.proposals import ProposalLimits
from faster_rcnn.resize import ResizeRule
from faster_rcnn.roi_head import DetectionLimits, TargetNormalisation
from faster_rcnn.sampling import AnchorSampling, ProposalSampling

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes and rules of a detector. The defaults are the paper's VGG-16; `preset` has those of the other backbones."""

    labels: tuple[str, ...]  # classes without background
    backbone: str = "vgg16"
    anchor_scales: tuple[float, ...] = (128.0, 256.0, 512.0)  # section 3.3
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    rpn_channels: int = 512
    roi_pooling: str = "max"
    roi_size: int = 7
    head_units: int = 4096
    head_dropout: float = 0.5
    resize: ResizeRule = field(default_factory=lambda: ResizeRule(600, 1000))  # section 3.3
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    training_proposals: ProposalLimits = ProposalLimits(12000, 2000)
    proposals: ProposalLimits = ProposalLimits(6000, 300)
    detections: DetectionLimits = DetectionLimits()
    anchor_sampling: AnchorSampling = AnchorSampling()
    proposal_sampling: ProposalSampling = ProposalSampling()
    losses: LossRule = LossRule()
    target_normalisation: TargetNormalisation = TargetNormalisation()

    @property
    def anchors_per_location(self) -> int:
        return len(self.anchor_scales) * len(self.anchor_ratios)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DetectorConfig":
        """The inverse of `to_dict`, also after a trip through JSON, which knows no tuples."""
        return TypeAdapter(cls).validate_python(values)


def preset(backbone: str, labels: tuple[str, ...]) -> DetectorConfig:
    """The configuration that suits a backbone."""
    paper = DetectorConfig(labels=labels)
    if backbone == "vgg16":
        return paper
    if backbone == "compact":
        return replace(
            paper,
            backbone="compact",
            # An octave apart from a tenth of the shorter side to nearly all of it: the shapes come in that range.
            anchor_scales=(32.0, 64.0, 128.0, 256.0),
            rpn_channels=256,
            roi_pooling="align",  # max pooling's rounding to cells of 16 pixels costs a tenth of AP@0.75
            head_units=256,
            head_dropout=0.0,
            resize=ResizeRule(288, 576),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            training_proposals=ProposalLimits(1000, 200, min_side=4.0),
            proposals=ProposalLimits(1000, 100, min_side=4.0),
            # The tail of the precision-recall curve is worth a quarter of a point of AP@0.5; a service cuts it off.
            detections=DetectionLimits(score_floor=0.005),
            anchor_sampling=AnchorSampling(keep_crossing=True),
            proposal_sampling=ProposalSampling(batch=64),
        )
    raise ValueError(f"unknown backbone {backbone!r}; there are: compact, vgg16")


# What cameras make (1:1, 4:3, 3:2, 16:9), so that photographs fill their canvas, and one step between the first two.
CANVAS_RATIOS = (1.0, 7 / 6, 4 / 3, 3 / 2, 16 / 9)


def canvases(resize: ResizeRule, stride: int) -> list[tuple[int, int]]:
    """The canvases, height × width, that hold every image resized by `resize`: smallest first.

    The shorter side is `min_size`; the longer follows CANVAS_RATIOS up to `max_size`, which is the last.
    """

    def up(side: float) -> int:
        return math.ceil(round(side, 6) / stride) * stride

    longer = {up(resize.min_size * ratio) for ratio in CANVAS_RATIOS if resize.min_size * ratio < resize.max_size}
    longer.add(up(resize.max_size))
    shorter = up(resize.min_size)
    return sorted(
        {(shorter, side) for side in longer} | {(side, shorter) for side in longer}, key=lambda s: (s[0] * s[1], s)
    )
