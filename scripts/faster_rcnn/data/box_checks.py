"""Checks of annotated boxes: boxes without area, boxes outside their image, and duplicates.

G  objects of an image.  Boxes are x1, y1, x2, y2 in pixels of the upright image.
"""

from collections.abc import Iterator

import numpy as np

from faster_rcnn.data.annotations import AnnotatedImage, Annotation
from faster_rcnn.data.faults import Fault

# Pixels by which a box may cross the border: one for tools that count pixels from 0 where the format counts from 1, and
# one for rounding. Such a box is clipped. If it extends further, it was drawn on another image or at another size.
TOLERANCE = 2.0
MIN_SIDE = 0.1  # pixels; a shorter side could vanish in float32 when a large image is resized
NEAR_DUPLICATE = 0.8  # IoU; two boxes of a class that overlap more are nearly always one object annotated twice
CHUNK = 64  # boxes that are compared at a time, which limits the memory for an image with very many boxes

CheckedObject = tuple[Annotation, np.ndarray]  # the object and its box, float64 [4], clipped to the image


def check_boxes(image: AnnotatedImage, drop_near_duplicates: bool) -> tuple[list[CheckedObject], list[Fault]]:
    """Returns the objects of an image that can be trained on, and the faults of all its objects."""
    usable: list[CheckedObject] = []
    faults: list[Fault] = []
    border = np.array([image.width, image.height] * 2, np.float64)
    for annotation in image.annotations:
        box = np.array(annotation.box, np.float64)
        clipped = box.clip(0, border)
        if min(box[2:] - box[:2]) < MIN_SIDE:
            faults.append(no_area_fault(annotation, image.name))
        elif min(clipped[2:] - clipped[:2]) < MIN_SIDE:
            faults.append(_outside_fault(annotation, image, "lies outside"))
        else:
            if abs(box - clipped).max() > TOLERANCE:
                faults.append(_outside_fault(annotation, image, "extends beyond the border of"))
            usable.append((annotation, clipped))
    duplicates = duplicate_faults(image, usable)
    dropped = {index for index, fault in duplicates.items() if drop_near_duplicates or not fault.warning}
    kept = [checked for index, checked in enumerate(usable) if index not in dropped]
    return kept, [*faults, *duplicates.values()]


def no_area_fault(annotation: Annotation, image_name: str) -> Fault:
    """The fault of an object whose box has no area."""
    what = f"{annotation.title}: its box {annotation.written_box} in {image_name} has no area"
    return Fault("box without area", annotation.where, what, "correct or remove it")


def _outside_fault(annotation: Annotation, image: AnnotatedImage, how: str) -> Fault:
    size = f"{image.width}×{image.height}"
    what = f"{annotation.title}: its box {annotation.written_box} {how} {image.name}, which is {size}"
    return Fault("box outside the image", annotation.where, what, "correct or remove it")


def duplicate_faults(image: AnnotatedImage, objects: list[CheckedObject]) -> dict[int, Fault]:
    """Maps the index of each object that repeats an earlier object of its class to the fault.

    Crowds are not compared, because they overlap the objects in them.
    """
    faults: dict[int, Fault] = {}
    first_with: dict[tuple[float, ...], int] = {}
    compared = [index for index, (annotation, _) in enumerate(objects) if not annotation.crowd]
    for index in compared:
        annotation, box = objects[index]
        first = first_with.setdefault((annotation.label, *box.tolist()), index)
        if first != index:
            faults[index] = _duplicate_fault("duplicate box", image, annotation, objects[first][0], "equals the box of")
    near: dict[int, Fault] = {}
    for index, first, iou in _overlapping(objects, [index for index in compared if index not in faults]):
        if index not in near and first not in near:
            how = f"has an IoU of {iou:.2f} with the box of"
            near[index] = _duplicate_fault("near-duplicate box", image, objects[index][0], objects[first][0], how)
    return faults | dict(sorted(near.items()))


def _duplicate_fault(kind: str, image: AnnotatedImage, one: Annotation, other: Annotation, how: str) -> Fault:
    what = f"{one.title}: its box {one.written_box} in {image.name} {how} {other.title} ({other.where})"
    return Fault(kind, one.where, what, "remove one of the two", warning=kind != "duplicate box")


def _overlapping(objects: list[CheckedObject], indices: list[int]) -> Iterator[tuple[int, int, float]]:
    """Pairs of objects of one class whose IoU is above NEAR_DUPLICATE: index, index of the earlier object, IoU.

    Within a class, the pairs are sorted by the later object, then by the earlier one.
    """
    if len(indices) < 2:
        return
    labels = np.array([objects[index][0].label for index in indices])
    boxes = np.array([objects[index][1] for index in indices])
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        for later, earlier, iou in near_duplicates(boxes[of_class]):
            yield indices[of_class[later]], indices[of_class[earlier]], iou


def near_duplicates(boxes: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Pairs of boxes [G, 4] with an IoU above NEAR_DUPLICATE = t, as sorted (later index, earlier index, IoU).

    An IoU is at most the shared width over the larger width. So a box of width w that begins at x has an IoU above t
    only with boxes that begin between x - (1 / t - 1) w (such a box is at most w / t wide) and x + (1 - t) w. The boxes
    are sorted by their left edge, and only those in this range are compared.
    """
    order = np.argsort(boxes[:, 0], kind="stable")
    starts = boxes[order, 0]
    widths, areas = boxes[:, 2] - boxes[:, 0], (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    slack = 1e-9 * (1 + np.abs(boxes[:, 0]))  # so that rounding never excludes a pair
    lows = np.searchsorted(starts, boxes[:, 0] - (1 / NEAR_DUPLICATE - 1) * widths - slack, side="left")
    highs = np.searchsorted(starts, boxes[:, 0] + (1 - NEAR_DUPLICATE) * widths + slack, side="right")
    for chunk in range(0, len(boxes), CHUNK):
        rows = np.arange(chunk, min(chunk + CHUNK, len(boxes)))
        counts = highs[rows] - lows[rows]
        later = np.repeat(rows, counts)
        offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        earlier = order[np.repeat(lows[rows], counts) + offsets]
        later, earlier = later[earlier < later], earlier[earlier < later]
        corners = np.minimum(boxes[later, 2:], boxes[earlier, 2:]) - np.maximum(boxes[later, :2], boxes[earlier, :2])
        shared = corners.clip(0).prod(axis=1)
        iou = shared / (areas[later] + areas[earlier] - shared)
        pairs = [
            (int(later[pair]), int(earlier[pair]), float(iou[pair])) for pair in np.flatnonzero(iou > NEAR_DUPLICATE)
        ]
        yield from sorted(pairs)
