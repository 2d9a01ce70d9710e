"""How many objects a source of proposals finds, whatever their class (Ren et al. 2015, section 4.1, figure 4).

Recall at an IoU of 0.5 and 0.7, and the average recall: the mean over IoU 0.50, 0.55, …, 0.95, COCO's AR. Proposals are
taken best first, and each finds the object that it overlaps most among those not found yet, if it overlaps it enough:
COCO's rule for detections without classes, so the numbers are those of pycocotools. One proposal stands for one object
only, since the head makes one detection of a class of it. Whether a proposal finds an object depends on those before it
alone, so that one pass gives the recall of any number of proposals. Crowds and difficult objects are left out.

G  objects, P  proposals of an image;  T = 10 IoU limits.  Boxes are x1, y1, x2, y2 in pixels of the image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from faster_rcnn.data.dataset import Sample
from faster_rcnn.evaluation.overlaps import overlaps

NUMBERS = (100, 300, 1000, 2000)
IOU_LIMITS = np.linspace(0.5, 0.95, 10)
MEASURES = ("R@0.5", "R@0.7", "AR")
CURVE = tuple(sorted({round(10 ** (power / 8)) for power in range(8 * 4)}))  # numbers of proposals, even on a log axis
NEVER = np.iinfo(np.int64).max


def proposal_recall(
    truths: Sequence[Sample], regions: Sequence[np.ndarray], numbers: tuple[int, ...] = NUMBERS
) -> dict[str, Any]:
    """The recall of the best proposals, for several numbers of them an image.

    truths: the samples, whose pixels are not looked at;  regions: float [P, 4] for each, best first.
    Returns objects, images and proposals_per_picture (counts);  by_number: for each number R@0.5, R@0.7 and AR;
    by_iou: the limits, and for each number the recall at each;  curve: the measures over numbers up to the most that
    an image has. Numbers are written as text, as in JSON. Raises ValueError if there is no object.
    """
    found = [
        find_objects(truth.boxes[truth.counted()], proposals)
        for truth, proposals in tqdm(list(zip(truths, regions, strict=True)), desc="recall", unit="image", leave=False)
    ]
    ranks = np.concatenate([np.empty((len(IOU_LIMITS), 0), np.int64), *found], axis=1)
    objects = ranks.shape[1]
    if objects == 0:
        raise ValueError("the images hold no object, so that no recall can be told; take more images")
    most = max(len(one) for one in regions)
    by_iou = {number: (ranks < number).mean(axis=1) for number in numbers}
    steps = [number for number in CURVE if number < most] + [most]
    curve = [_measures((ranks < number).mean(axis=1)) for number in steps]
    return {
        "objects": objects,
        "pictures": len(regions),
        "proposals_per_picture": float(np.mean([len(one) for one in regions])),
        "by_number": {str(number): _measures(recall) for number, recall in by_iou.items()},
        "by_iou": {"iou": IOU_LIMITS.round(2).tolist()}
        | {str(number): recall.tolist() for number, recall in by_iou.items()},
        "curve": {"number": steps} | {name: [point[name] for point in curve] for name in MEASURES},
    }


def find_objects(boxes: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """Which proposal finds each object, at each IoU limit.

    boxes: [G, 4];  proposals: [P, 4], best first.  Returns int64 [T, G]: a row of `proposals`, or NEVER.
    """
    table = overlaps(proposals, boxes)
    ranks = np.full((len(IOU_LIMITS), len(boxes)), NEVER)
    for row, limit in enumerate(IOU_LIMITS):
        free = np.ones(len(boxes), bool)
        for proposal in np.flatnonzero((table >= limit).any(axis=1)):
            overlap = np.where(free, table[proposal], -1.0)
            best = len(boxes) - 1 - int(overlap[::-1].argmax())  # the last of equals, as pycocotools
            if overlap[best] >= limit:
                ranks[row, best] = proposal
                free[best] = False
                if not free.any():
                    break
    return ranks


def recall_table(sources: dict[str, dict[str, Any]]) -> str:
    """Results of `proposal_recall` by the name of their source, as a table in Markdown: a line a source and number."""
    lines = [
        "| source | proposals | " + " | ".join(MEASURES) + " | given an image |",
        "| --- | ---: | " + "---: | " * len(MEASURES) + "---: |",
    ]
    lines += [f"| {' | '.join(row)} |" for row in recall_rows(sources)]
    return "\n".join(lines) + "\n"


def recall_rows(sources: dict[str, dict[str, Any]]) -> list[list[str]]:
    """What `recall_table` shows, cell by cell."""
    return [
        [name, number, *(f"{measures[key]:.4f}" for key in MEASURES), f"{result['proposals_per_picture']:.0f}"]
        for name, result in sources.items()
        for number, measures in result["by_number"].items()
    ]


def _measures(recall: np.ndarray) -> dict[str, float]:
    """recall: [T]."""
    return {"R@0.5": float(recall[0]), "R@0.7": float(recall[4]), "AR": float(recall.mean())}
