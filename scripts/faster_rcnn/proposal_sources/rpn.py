"""Proposals by a trained region proposal network, each picture by itself and resized by the detector's own rule.

P  proposals of a picture.  Boxes leave in pixels of the original picture.
"""

import sys
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from faster_rcnn.boxes import clip_to_sizes
from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.data.loader import collate
from faster_rcnn.detector import FasterRCNN
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, Regions, picture_range
from faster_rcnn.proposals import ProposalLimits
from faster_rcnn.resize import resize_image

EVERY = sys.maxsize  # anchors
MOST_OF_A_MAP = 12_000  # anchors; as many as NMS sees of the single map in the reference code's joint training


def uncut_limits(detector: FasterRCNN, limit: int = LIMIT) -> ProposalLimits:
    """The limits of alternating training, at the threshold of NMS that the detector has in its own.

    On one feature map NMS sees every anchor (RPN_PRE_NMS_TOP_N = -1 in the reference code). A pyramid, which the
    reference code has not, shows it the best 12,000 of each map: among the 160,000 anchors of the finest one
    it would take a minute a picture.
    """
    before = EVERY if len(detector.backbone.strides) == 1 else MOST_OF_A_MAP
    return replace(detector.config.training_proposals, before_nms=before, after_nms=limit)


@torch.no_grad()
def rpn_regions(
    detector: FasterRCNN, dataset: Dataset, limits: ProposalLimits, made: str = "rpn", pictures: int | None = None
) -> ProposalTable:
    """The proposals for the first `pictures` pictures of a data set (None: of all), on the detector's device.

    made: the words that say where the detector comes from; the limits are added.
    """
    training = detector.training
    detector.eval()
    table = {}
    for index in tqdm(picture_range(dataset, pictures), desc="proposing", unit="picture"):
        table[dataset.name(index)] = picture_regions(detector, dataset[index], limits)
    detector.train(training)
    before = "all" if limits.before_nms == EVERY else limits.before_nms
    return ProposalTable(
        table,
        f"{made}; {before} before NMS at {limits.nms_threshold:g}, {limits.after_nms} after it; "
        f"sides from {limits.min_side:g}",
    )


@torch.no_grad()
def picture_regions(detector: FasterRCNN, sample: Sample, limits: ProposalLimits) -> Regions:
    """The proposals for one picture, on the tightest canvas. The detector is to be in the mode for inference."""
    image, scale_x, scale_y = resize_image(sample.image, detector.config.resize)
    device = detector.mean.device
    batch = collate([Sample(image, sample.boxes, sample.labels)], detector.backbone.stride).to(device)
    anchors = detector.regions(detector.features(batch.images, batch.sizes), batch.sizes)
    before_nms = min(limits.before_nms, max(anchors.levels))  # the operators pad to what they are asked for
    number, boxes, objectness = detector.select(anchors, batch.sizes, replace(limits, before_nms=before_nms))
    scale = boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
    size = torch.tensor([sample.image.shape[:2]], device=device)
    original: Tensor = clip_to_sizes(boxes[:, : int(number[0])] / scale, size)[0]
    sides = original[:, 2:] - original[:, :2]
    some = (sides > 0).all(dim=1)  # a sliver may vanish when it is rounded
    return Regions(original[some].cpu().numpy(), objectness[0, : len(some)][some].cpu().numpy())
