"""The limits on what a detector returns: where to read them, what they cost on given data, and how to raise them.

A detector returns at most D detections and P proposals for an image. D is `DetectorConfig.detections.detections`, and
P is `DetectorConfig.proposals.after_nms`. The card of a published model, whichever library it comes from, holds them in
its member `detector`, which `limits_of` reads.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from faster_rcnn.detector.config import DetectorConfig

# Neighbouring proposals usually find the same object, so NMS needs several candidates for each detection that it keeps.
# The default is 400 for 100 detections.
CANDIDATES_PER_DETECTION = 4


@dataclass(frozen=True)
class Limits:
    """What a detector returns for one image at most.

    detections: D;  proposals: P;  score_floor: detections have a score above it.
    """

    detections: int
    proposals: int
    score_floor: float


def limits_of(description: Mapping[str, Any]) -> Limits | None:
    """The limits in the member `detector` of a card; None if another program wrote it."""
    try:
        if "box_detections_per_img" in description:  # torchvision's names
            return Limits(
                int(description["box_detections_per_img"]),
                int(description["rpn_post_nms_top_n"]),
                float(description["box_score_thresh"]),
            )
        detections = description["detections"]
        proposals = description["proposals"]["after_nms"]
        return Limits(int(detections["detections"]), int(proposals), float(detections["score_floor"]))
    except (KeyError, TypeError, ValueError):
        return None


def with_detections(config: DetectorConfig, number: int) -> DetectorConfig:
    """`config` with at most `number` detections for each image.

    As many candidates enter NMS for each detection as by default, and there are at least as many proposals as
    detections; both are only ever raised. The weights do not depend on any of this.
    """
    candidates = max(config.detections.candidates, CANDIDATES_PER_DETECTION * number)
    proposals = config.proposals
    after = max(proposals.after_nms, number)
    return replace(
        config,
        detections=replace(config.detections, detections=number, candidates=candidates),
        proposals=replace(proposals, before_nms=max(proposals.before_nms, after), after_nms=after),
    )


def too_many_objects(counts: Sequence[int], detections: int, images: str = "images") -> str | None:
    """A warning if some images have more objects than a detector returns detections; else None.

    counts: the number of objects of each image;  detections: D;  images: what they are called, for example "validation
    images".
    """
    excess = [count - detections for count in counts if count > detections]
    if not excess:
        return None
    most = detections + max(excess)
    return (
        f"{len(excess)} of {len(counts)} {images} have more objects (up to {most}) than the {detections} detections "
        f"that the model returns for an image, so at least {sum(excess)} of {sum(counts)} objects cannot be found; "
        f"train or export with --detections {most}"
    )


def too_many_to_sample(counts: Sequence[int], config: DetectorConfig) -> str | None:
    """A sentence if training samples fewer regions on objects than some images have objects; else None.

    counts: the number of objects of each training image. A step then trains the head on a random part of them
    (Fast R-CNN, section 2.3), so nothing is lost for good, but such images need more iterations.
    """
    sampling = config.proposal_sampling
    most = int(sampling.batch * sampling.foreground_share)
    crowded = sum(count > most for count in counts)
    if not crowded:
        return None
    enough = math.ceil(max(counts) / sampling.foreground_share)
    return (
        f"{crowded} of {len(counts)} training images have more objects (up to {max(counts)}) than the {most} regions "
        f"on objects that a step samples for the head; --rois {enough} would use all of them in every step"
    )
