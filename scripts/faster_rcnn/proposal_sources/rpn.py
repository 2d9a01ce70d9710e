"""Proposals of a trained region proposal network (RPN). Each image is resized by the detector's own rule.

Returned boxes are in pixels of the original image.
"""

import sys
from dataclasses import replace

from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.rules import ProposalLimits
from faster_rcnn.prediction import inferring, prepare_image
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, Regions

EVERY = sys.maxsize  # a limit that no number of anchors reaches
MOST_OF_A_MAP = 12_000  # anchors that enter NMS in the joint training of the reference code


def uncut_limits(detector: FasterRCNN, limit: int = LIMIT) -> ProposalLimits:
    """The limits of alternating training, with the detector's own NMS threshold.

    With one feature map, every anchor enters NMS (RPN_PRE_NMS_TOP_N = -1 in the reference code). With a feature
    pyramid, which the reference code does not have, only the best 12,000 anchors of each map enter NMS, because the
    160,000 anchors of the finest map would take a minute per image.
    """
    before = EVERY if len(detector.backbone.strides) == 1 else MOST_OF_A_MAP
    return replace(detector.config.training_proposals, before_nms=before, after_nms=limit)


def rpn_regions(detector: FasterRCNN, dataset: Dataset, limits: ProposalLimits, made: str = "rpn") -> ProposalTable:
    """The proposals for the images of a data set, computed on the detector's device.

    made: a description of where the detector comes from. The `made` of the table is this text followed by the limits.
    """
    table = {}
    for index in tqdm(range(len(dataset)), desc="proposing", unit="image"):
        table[dataset.name(index)] = image_regions(detector, dataset[index], limits)
    before = "all" if limits.before_nms == EVERY else limits.before_nms
    return ProposalTable(
        table,
        f"{made}; {before} before NMS at {limits.nms_threshold:g}, {limits.after_nms} after it; "
        f"sides from {limits.min_side:g}",
    )


def image_regions(detector: FasterRCNN, sample: Sample, limits: ProposalLimits) -> Regions:
    """The proposals for one image, computed on the smallest canvas that fits the image."""
    image = prepare_image(detector, sample)
    sizes = image.batch.sizes
    with inferring(detector):
        anchors = detector.regions(detector.features(image.batch.images, sizes), sizes)
        before_nms = min(limits.before_nms, max(anchors.levels))  # the output is padded to this length
        number, boxes, objectness = detector.select(anchors, sizes, replace(limits, before_nms=before_nms))
    original = image.to_original(boxes[:, : int(number[0])])
    has_area = (original[:, 2:] > original[:, :2]).all(axis=1)  # rounding may reduce a very thin box to zero area
    return Regions(original[has_area], objectness[0, : len(original)].cpu().numpy()[has_area])
