"""Proposals by a trained region proposal network, each image by itself and resized by the detector's own rule.

P  proposals of an image.  Boxes leave in pixels of the original image.
"""

import sys
from dataclasses import replace

from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.proposals import ProposalLimits
from faster_rcnn.prediction import inferring, single
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, Regions

EVERY = sys.maxsize  # anchors
MOST_OF_A_MAP = 12_000  # anchors; as many as NMS sees of the single map in the reference code's joint training


def uncut_limits(detector: FasterRCNN, limit: int = LIMIT) -> ProposalLimits:
    """The limits of alternating training, at the threshold of NMS that the detector has in its own.

    On one feature map NMS sees every anchor (RPN_PRE_NMS_TOP_N = -1 in the reference code). A pyramid, which the
    reference code has not, shows it the best 12,000 of each map: among the 160,000 anchors of the finest one
    it would take a minute an image.
    """
    before = EVERY if len(detector.backbone.strides) == 1 else MOST_OF_A_MAP
    return replace(detector.config.training_proposals, before_nms=before, after_nms=limit)


def rpn_regions(detector: FasterRCNN, dataset: Dataset, limits: ProposalLimits, made: str = "rpn") -> ProposalTable:
    """The proposals for the images of a data set, on the detector's device.

    made: the words that say where the detector comes from; the limits are added.
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
    """The proposals for one image, on the tightest canvas."""
    one = single(detector, sample)
    sizes = one.batch.sizes
    with inferring(detector):
        anchors = detector.regions(detector.features(one.batch.images, sizes), sizes)
        before_nms = min(limits.before_nms, max(anchors.levels))  # the operators pad to what they are asked for
        number, boxes, objectness = detector.select(anchors, sizes, replace(limits, before_nms=before_nms))
    original = one.to_original(boxes[:, : int(number[0])])
    some = (original[:, 2:] > original[:, :2]).all(axis=1)  # a sliver may vanish when it is rounded
    return Regions(original[some], objectness[0, : len(original)].cpu().numpy()[some])
