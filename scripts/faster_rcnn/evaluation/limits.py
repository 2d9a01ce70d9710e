"""Warnings about images for which a detector's limits, or those of COCO's AP, are too low."""

from collections.abc import Sequence

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.detector.limits import Limits, too_many_objects
from faster_rcnn.evaluation.coco import MAX_DETECTIONS, exceeds_limit


def limit_warnings(
    truths: Sequence[Sample],
    predictions: Sequence[Prediction],
    threshold: float,
    limits: Limits | None,
    images: str = "images",
) -> list[str]:
    """A sentence for each limit that some images exceed, with figures.

    threshold: the served score threshold;  limits: of the detector, None if they are unknown;  images: what the images
    are called.
    """
    warnings = []
    counts = [int(truth.counted().sum()) for truth in truths]
    if limits is not None and (excess := too_many_objects(counts, limits.detections, images)):
        warnings.append(f"warning: {excess}")
    if cut := sum(0 < one.left_out >= threshold for one in predictions):
        warnings.append(
            f"warning: in {cut} of {len(truths)} {images} the model's limits on detections and candidates may have "
            f"left out detections with a score of {threshold:g} or more; export with more --detections"
        )
    if beyond := sum(map(exceeds_limit, truths)):
        warnings.append(
            f"warning: {beyond} of {len(truths)} {images} have more than {MAX_DETECTIONS} objects of one class; COCO's "
            f"AP counts only {MAX_DETECTIONS} detections of a class in an image, so compare VOC_mAP, which counts all"
        )
    return warnings
