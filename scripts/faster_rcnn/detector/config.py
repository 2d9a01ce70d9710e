"""The configuration of a detector: everything that is needed to rebuild it from a checkpoint."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.rules import (
    AnchorSampling,
    DetectionLimits,
    LossRule,
    ProposalLimits,
    ProposalSampling,
    TargetNormalisation,
)
from service.images.depth import WHITE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes and rules of a detector. The defaults are the paper's; `default_config` returns those of a backbone."""

    labels: tuple[str, ...]  # class names, without the background
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
    white: int = WHITE  # the value that means white in an image with 16 bits per channel
    training_proposals: ProposalLimits = ProposalLimits(12000, 2000)
    proposals: ProposalLimits = ProposalLimits(6000, 300)
    detections: DetectionLimits = DetectionLimits()
    anchor_sampling: AnchorSampling = AnchorSampling()
    proposal_sampling: ProposalSampling = ProposalSampling()
    losses: LossRule = LossRule()
    target_normalisation: TargetNormalisation = TargetNormalisation()

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, for a checkpoint or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DetectorConfig":
        """The inverse of `to_dict`, also after a round trip through JSON, which turns tuples into lists."""
        return TypeAdapter(cls).validate_python(values)


PAPER = DetectorConfig(labels=())

# Improvements since the paper, which torchvision has too: RoIAlign and a narrower head without dropout. Anchors that
# cross the border are trained too, because some anchors are as large as the image.
_MODERN = replace(
    PAPER,
    roi_pooling="align",
    head_units=1024,
    head_dropout=0.0,
    anchor_sampling=AnchorSampling(keep_crossing=True),
)

# Lin et al. 2017 train and test with a shorter side of 800, so that the finest map resolves small objects. The limits
# apply to each map before NMS and to the whole image after it; the numbers are torchvision's.
_PYRAMID = replace(
    _MODERN,
    resize=ResizeRule(800, 1333),
    rpn_channels=256,
    training_proposals=ProposalLimits(2000, 2000),
    proposals=ProposalLimits(1000, 1000),
    # A pyramid has thirty times as many locations as one map, so the paper's normaliser would nearly remove the box
    # term.
    losses=LossRule(rpn_lambda=1.0, rpn_normaliser="sampled"),
)

# The default configuration of each backbone, without labels.
DEFAULTS: dict[str, DetectorConfig] = {
    "vgg16": PAPER,
    "compact": replace(
        PAPER,
        backbone="compact",
        # The scales are an octave apart and reach from a tenth of the shorter side to nearly all of it, like the
        # objects of `shapes`.
        anchor_scales=(32.0, 64.0, 128.0, 256.0),
        rpn_channels=256,
        roi_pooling="align",  # max pooling rounds to cells of 16 pixels, which costs a tenth of AP@0.75
        head_units=256,
        head_dropout=0.0,
        resize=ResizeRule(288, 576),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        training_proposals=ProposalLimits(1000, 200, min_side=4.0),
        proposals=ProposalLimits(1000, 100, min_side=4.0),
        # Detections with low scores extend the precision-recall curve, which adds a quarter of a point to AP@0.5.
        detections=DetectionLimits(score_floor=0.005),
        anchor_sampling=AnchorSampling(keep_crossing=True),
        proposal_sampling=ProposalSampling(batch=64),
    ),
    "resnet50": replace(
        _MODERN,
        backbone="resnet50",
        # The paper's scales suit VOC; COCO's small objects need two more octaves, as in Detectron's C4 models.
        anchor_scales=(32.0, 64.0, 128.0, 256.0, 512.0),
    ),
    "mobilenet_v3_large": replace(
        _MODERN,
        backbone="mobilenet_v3_large",
        # This backbone was designed for phones. The image size is torchvision's for phones; the anchors suit it.
        resize=ResizeRule(320, 640),
        anchor_scales=(32.0, 64.0, 128.0, 256.0),
        rpn_channels=256,
        training_proposals=ProposalLimits(2000, 500),
        proposals=ProposalLimits(1000, 150),
    ),
    "resnet50_fpn": replace(
        _PYRAMID,
        backbone="resnet50_fpn",
        anchor_scales=(32.0, 64.0, 128.0, 256.0, 512.0),  # one per map (Lin et al. 2017, section 4.1)
    ),
    "mobilenet_v3_large_fpn": replace(
        _PYRAMID,
        backbone="mobilenet_v3_large_fpn",
        # torchvision uses every scale from 32 to 512 on each of the three maps. Nine scales half an octave apart,
        # three per map, cover the same range without repeating scales on the two maps that have the same stride.
        anchor_scales=tuple(round(32 * 2 ** (step / 2)) * 1.0 for step in range(9)),
    ),
}


def default_config(backbone: str, labels: tuple[str, ...]) -> DetectorConfig:
    """The default configuration for a backbone and the given classes (without background).

    Raises ValueError for an unknown backbone; the message lists the known ones.
    """
    if backbone not in DEFAULTS:
        raise ValueError(f"unknown backbone {backbone!r}; choose from: {', '.join(sorted(DEFAULTS))}")
    return replace(DEFAULTS[backbone], labels=labels)


# The aspect ratios of cameras (1:1, 4:3, 3:2, 16:9), so that photographs fill their canvas, and one ratio between
# 1:1 and 4:3.
CANVAS_RATIOS = (1.0, 7 / 6, 4 / 3, 3 / 2, 16 / 9)


def canvases(resize: ResizeRule, stride: int) -> list[tuple[int, int]]:
    """The canvases as (height, width), smallest first; every image resized by `resize` fits on one of them.

    The shorter side is `min_size`. The longer sides follow from CANVAS_RATIOS, and the longest is `max_size`. All
    sides are rounded up to multiples of `stride`.
    """

    def round_up(side: float) -> int:
        return math.ceil(round(side, 6) / stride) * stride

    longer = {round_up(resize.min_size * ratio) for ratio in CANVAS_RATIOS if resize.min_size * ratio < resize.max_size}
    longer.add(round_up(resize.max_size))
    shorter = round_up(resize.min_size)
    return sorted(
        {(shorter, side) for side in longer} | {(side, shorter) for side in longer},
        key=lambda canvas: (canvas[0] * canvas[1], canvas),
    )
