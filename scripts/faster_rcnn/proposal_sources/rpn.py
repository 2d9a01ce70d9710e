"""Proposals of a trained region proposal network, one image at a time, resized by the detector's own rule.

P  proposals of an image.  Returned boxes are in pixels of the original image.
"""

import sys
from dataclasses import replace

from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.proposals import ProposalLimits
from faster_rcnn.prediction import inferring, prepare_image
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, Regions

EVERY = sys.maxsize  # anchors
MOST_OF_A_MAP = 12_000  # anchors; the number that enters NMS in the reference code's joint training


def uncut_limits(detector: FasterRCNN, limit: int = LIMIT) -> ProposalLimits:
    """The limits of alternating training, with the detector's own NMS threshold.

    With one feature map, every anchor enters NMS (RPN_PRE_NMS_TOP_N = -1 in the reference code). With a pyramid, which
    the reference code lacks, only the best 12,000 of each map do: the 160,000 anchors of the finest map would take a
    minute per image.
    """
    before = EVERY if len(detector.backbone.strides) == 1 else MOST_OF_A_MAP
    return replace(detector.config.training_proposals, before_nms=before, after_nms=limit)


def rpn_regions(detector: FasterRCNN, dataset: Dataset, limits: ProposalLimits, made: str = "rpn") -> ProposalTable:
    """The proposals for the images of a data set, computed on the detector's device.

    made: where the detector comes from, in words; the table's own `made` adds the limits.
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
    """The proposals for one image, computed on the smallest canvas."""
    image = prepare_image(detector, sample)
    sizes = image.batch.sizes
    with inferring(detector):
        anchors = detector.regions(detector.features(image.batch.images, sizes), sizes)
        before_nms = min(limits.before_nms, max(anchors.levels))  # the operators pad their output to this length
        number, boxes, objectness = detector.select(anchors, sizes, replace(limits, before_nms=before_nms))
    original = image.to_original(boxes[:, : int(number[0])])
    has_area = (original[:, 2:] > original[:, :2]).all(axis=1)  # rounding may leave a very thin box without area
    return Regions(original[has_area], objectness[0, : len(original)].cpu().numpy()[has_area])
