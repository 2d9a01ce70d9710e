"""The recall of proposals: the share of objects that they cover, of any class (Ren et al. 2015, section 4.1, figure 4).

The measures are recall at IoU 0.5 and 0.7, and average recall, the mean over IoU 0.50, 0.55, …, 0.95 (COCO's AR).
Proposals are processed best first. Each finds the object that it overlaps most among those not found yet, if their IoU
reaches the threshold. This is COCO's rule for detections without classes, so the results equal those of pycocotools. A
proposal finds at most one object, because the head makes at most one detection per class from it. Whether a proposal
finds an object depends only on the proposals before it, so one pass gives the recall for any number of proposals.
Crowds and difficult objects are left out.

G and P are the numbers of objects and proposals of an image. There are T = 10 IoU thresholds. Boxes are
x1, y1, x2, y2 in pixels of the image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from faster_rcnn.data.dataset import Sample
from faster_rcnn.evaluation.overlaps import overlaps

NUMBERS = (100, 300, 1000, 2000)
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MEASURES = ("R@0.5", "R@0.7", "AR")
CURVE = tuple(sorted({round(10 ** (power / 8)) for power in range(8 * 4)}))  # evenly spaced on a log axis
NEVER = np.iinfo(np.int64).max


def proposal_recall(
    truths: Sequence[Sample], regions: Sequence[np.ndarray], numbers: tuple[int, ...] = NUMBERS
) -> dict[str, Any]:
    """The recall of the best proposals of each image, for several numbers of proposals per image.

    truths: samples, whose pixels are not read;  regions: float [P, 4] for each of them, best first.
    Returns a dict: objects and pictures, two counts;  proposals_per_picture, a mean;  by_number: R@0.5, R@0.7 and AR
    for each number;  by_iou: the thresholds, and for each number the recall at each threshold;  curve: the measures
    for numbers up to the most proposals of any image. Keys that are numbers are strings, as in JSON.
    Raises ValueError if the samples have no object.
    """
    found = [
        find_objects(truth.boxes[truth.counted()], proposals)
        for truth, proposals in tqdm(list(zip(truths, regions, strict=True)), desc="recall", unit="image", leave=False)
    ]
    ranks = np.concatenate([np.empty((len(IOU_THRESHOLDS), 0), np.int64), *found], axis=1)
    objects = ranks.shape[1]
    if objects == 0:
        raise ValueError("the images contain no object, so recall cannot be measured; use more images")
    most = max(len(one) for one in regions)
    by_iou = {number: (ranks < number).mean(axis=1) for number in numbers}
    steps = [number for number in CURVE if number < most] + [most]
    curve = [_measures((ranks < number).mean(axis=1)) for number in steps]
    return {
        "objects": objects,
        "pictures": len(regions),
        "proposals_per_picture": float(np.mean([len(one) for one in regions])),
        "by_number": {str(number): _measures(recall) for number, recall in by_iou.items()},
        "by_iou": {"iou": IOU_THRESHOLDS.round(2).tolist()}
        | {str(number): recall.tolist() for number, recall in by_iou.items()},
        "curve": {"number": steps} | {name: [point[name] for point in curve] for name in MEASURES},
    }


def find_objects(boxes: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """The first proposal that finds each object, at each IoU threshold.

    boxes: [G, 4];  proposals: [P, 4], best first.  Returns int64 [T, G]: a row of `proposals`, or NEVER.
    """
    table = overlaps(proposals, boxes)
    ranks = np.full((len(IOU_THRESHOLDS), len(boxes)), NEVER)
    for row, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(len(boxes), bool)
        for proposal in np.flatnonzero((table >= threshold).any(axis=1)):
            overlap = np.where(free, table[proposal], -1.0)
            best = len(boxes) - 1 - int(overlap[::-1].argmax())  # of several equal overlaps the last, as in pycocotools
            if overlap[best] >= threshold:
                ranks[row, best] = proposal
                free[best] = False
                if not free.any():
                    break
    return ranks


def recall_table(sources: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with one row per source and number; `sources` are results of `proposal_recall` by name."""
    lines = [
        "| source | proposals | " + " | ".join(MEASURES) + " | mean per image |",
        "| --- | ---: | " + "---: | " * len(MEASURES) + "---: |",
    ]
    lines += [f"| {' | '.join(row)} |" for row in recall_rows(sources)]
    return "\n".join(lines) + "\n"


def recall_rows(sources: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The cells of `recall_table`, row by row."""
    return [
        [name, number, *(f"{measures[key]:.4f}" for key in MEASURES), f"{result['proposals_per_picture']:.0f}"]
        for name, result in sources.items()
        for number, measures in result["by_number"].items()
    ]


def _measures(recall: np.ndarray) -> dict[str, float]:
    """The measures of a recall [T], one value per IoU threshold."""
    return {"R@0.5": float(recall[0]), "R@0.7": float(recall[4]), "AR": float(recall.mean())}
