"""What a detector is made of: everything that a checkpoint must know to be built again."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from faster_rcnn.detector.losses import LossRule
from faster_rcnn.detector.proposals import ProposalLimits
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.roi_head import DetectionLimits, TargetNormalisation
from faster_rcnn.detector.sampling import AnchorSampling, ProposalSampling

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DetectorConfig":
        """The inverse of `to_dict`, also after a trip through JSON, which knows no tuples."""
        return TypeAdapter(cls).validate_python(values)


# Since the paper: RoIAlign, a narrower head without dropout beside a normalised backbone, and, with anchors as large as
# the image, those that cross its border (torchvision has all of it).
_AFTER_THE_PAPER: dict[str, Any] = {
    "roi_pooling": "align",
    "head_units": 1024,
    "head_dropout": 0.0,
    "anchor_sampling": AnchorSampling(keep_crossing=True),
}

# Lin et al. 2017 train and test on shorter sides of 800, so that the finest map tells small objects apart; the numbers
# of proposals are a map's before the suppression and an image's after it (torchvision's).
_FPN_RESIZE = ResizeRule(800, 1333)
_PYRAMID: dict[str, Any] = {
    "rpn_channels": 256,
    "training_proposals": ProposalLimits(2000, 2000),
    "proposals": ProposalLimits(1000, 1000),
    # A pyramid has thirty times the locations of one map, which would leave next to nothing of the paper's weight.
    "losses": LossRule(rpn_lambda=1.0, rpn_normaliser="sampled"),
}

# What a backbone changes of the paper's configuration.
PRESETS: dict[str, dict[str, Any]] = {
    "vgg16": {},
    "compact": {
        # An octave apart from a tenth of the shorter side to nearly all of it: the shapes come in that range.
        "anchor_scales": (32.0, 64.0, 128.0, 256.0),
        "rpn_channels": 256,
        "roi_pooling": "align",  # max pooling's rounding to cells of 16 pixels costs a tenth of AP@0.75
        "head_units": 256,
        "head_dropout": 0.0,
        "resize": ResizeRule(288, 576),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "training_proposals": ProposalLimits(1000, 200, min_side=4.0),
        "proposals": ProposalLimits(1000, 100, min_side=4.0),
        # The tail of the precision-recall curve is worth a quarter of a point of AP@0.5; a service cuts it off.
        "detections": DetectionLimits(score_floor=0.005),
        "anchor_sampling": AnchorSampling(keep_crossing=True),
        "proposal_sampling": ProposalSampling(batch=64),
    },
    "resnet50": {
        # COCO's small objects want scales below the paper's, which are VOC's; two octaves more, as in Detectron's C4.
        "anchor_scales": (32.0, 64.0, 128.0, 256.0, 512.0),
        **_AFTER_THE_PAPER,
    },
    "mobilenet_v3_large": {
        # torchvision's for phones, where this backbone belongs, and anchors for images of that size
        "resize": ResizeRule(320, 640),
        "anchor_scales": (32.0, 64.0, 128.0, 256.0),
        "rpn_channels": 256,
        **_AFTER_THE_PAPER,
        "training_proposals": ProposalLimits(2000, 500),
        "proposals": ProposalLimits(1000, 150),
    },
    "resnet50_fpn": {
        "resize": _FPN_RESIZE,
        "anchor_scales": (32.0, 64.0, 128.0, 256.0, 512.0),  # one a map (Lin et al. 2017, section 4.1)
        **_AFTER_THE_PAPER,
        **_PYRAMID,
    },
    "mobilenet_v3_large_fpn": {
        "resize": _FPN_RESIZE,
        # torchvision sets all of 32 … 512 on each of the three maps; nine in steps of half an octave, three a map,
        # cover the same range without standing twice where two maps have the same stride
        "anchor_scales": tuple(round(32 * 2 ** (step / 2)) * 1.0 for step in range(9)),
        **_AFTER_THE_PAPER,
        **_PYRAMID,
    },
}


def preset(backbone: str, labels: tuple[str, ...]) -> DetectorConfig:
    """The configuration that suits a backbone.

    Raises ValueError for one that is not there, naming those that are.
    """
    if backbone not in PRESETS:
        raise ValueError(f"unknown backbone {backbone!r}; there are: {', '.join(sorted(PRESETS))}")
    return DetectorConfig(labels=labels, backbone=backbone, **PRESETS[backbone])


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
