"""Checks of annotated boxes: boxes without area, boxes outside their image, and duplicates.

G  objects of an image.  Boxes are x1, y1, x2, y2 in pixels of the upright image.
"""

import math
from collections.abc import Iterator

import numpy as np

from faster_rcnn.data.annotations import AnnotatedImage, Annotation
from faster_rcnn.data.faults import Fault

# Pixels by which a box may cross the border: one for tools that count pixels from 0 where the format counts from 1, and
# one for rounding. Such a box is clipped. If it extends further, it was drawn on another image or at another size.
TOLERANCE = 2.0
FAR = 1e9  # pixels; a coordinate beyond it is as wrong as this one, which float32 can hold
MIN_SIDE = 0.1  # pixels; a shorter side could vanish in float32 when a large image is resized
NEAR_DUPLICATE = 0.8  # IoU; two boxes of a class that overlap more are nearly always one object annotated twice
FEW = 64  # boxes of an image up to which comparing each with each is faster than looking for its neighbours

CheckedObject = tuple[Annotation, np.ndarray]  # the object and its box, float64 [4], clipped to the image


def check_boxes(image: AnnotatedImage, drop_near_duplicates: bool) -> tuple[list[CheckedObject], list[Fault]]:
    """Returns the objects of an image that can be trained on, and the faults of all its objects."""
    if not image.annotations:
        return [], []
    # Training uses float32. Rounding first means that a box that passes here passes again when it was written and read.
    written = np.array([annotation.box for annotation in image.annotations], np.float64)
    boxes = written.clip(-FAR, FAR).astype(np.float32).astype(np.float64)
    clipped = boxes.clip(0, [image.width, image.height] * 2)
    has_no_area = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) < MIN_SIDE
    is_outside = (clipped[:, 2:] - clipped[:, :2]).min(axis=1) < MIN_SIDE
    crosses = abs(boxes - clipped).max(axis=1) > TOLERANCE
    faults: list[Fault] = []
    for index in np.flatnonzero(has_no_area | is_outside | crosses).tolist():
        annotation = image.annotations[index]
        if has_no_area[index]:
            faults.append(no_area_fault(annotation, image.name))
        else:
            how = "lies outside" if is_outside[index] else "extends beyond the border of"
            faults.append(_outside_fault(annotation, image, how))
    usable = [(image.annotations[index], clipped[index]) for index in np.flatnonzero(~(has_no_area | is_outside))]
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
    unequal = [index for index in compared if index not in faults]
    if len(unequal) < 2:
        return faults
    labels = np.array([objects[index][0].label for index in unequal])
    boxes = np.array([objects[index][1] for index in unequal])
    for later, earlier, iou in near_duplicates(boxes, labels):
        index, how = unequal[later], f"has an IoU of {iou:.2f} with the box of"
        faults[index] = _duplicate_fault(
            "near-duplicate box", image, objects[index][0], objects[unequal[earlier]][0], how
        )
    return faults


def _duplicate_fault(kind: str, image: AnnotatedImage, one: Annotation, other: Annotation, how: str) -> Fault:
    what = f"{one.title}: its box {one.written_box} in {image.name} {how} {other.title} ({other.where})"
    return Fault(kind, one.where, what, "remove one of the two", warning=kind != "duplicate box")


def near_duplicates(boxes: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Boxes [G, 4] with an IoU above NEAR_DUPLICATE with an earlier box of their class, which is not one itself.

    labels: [G].  Yields the index, the first such earlier index, and the IoU, sorted by the index.
    """
    if len(boxes) > FEW:
        yield from _near_duplicates_of_many(boxes, labels)
        return
    near: set[int] = set()
    iou = _ious(boxes, boxes) * (labels[:, None] == labels)
    for index, first in np.argwhere(np.tril(iou, -1) > NEAR_DUPLICATE).tolist():
        if index not in near and first not in near:
            near.add(index)
            yield index, first, float(iou[index, first])


def _near_duplicates_of_many(boxes: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """`near_duplicates` in a time that grows with G, not with its square.

    Boxes with an IoU above t have widths whose ratio is above t, so one of width w is at most w / t wide, and begins at
    most (1 / t - 1) w further left or (1 - t) w further right; likewise in y. The boxes kept so far lie in a grid whose
    cells have the size of the boxes in them, and a box is compared with those in the cells within these bounds. Boxes
    that are kept do not overlap much, so a cell never holds many.
    """
    cells: dict[tuple[int, ...], list[int]] = {}
    for index, (label, (x1, y1, x2, y2)) in enumerate(zip(labels.tolist(), boxes.tolist(), strict=True)):
        columns, rows = _cells_within(x1, x2 - x1), _cells_within(y1, y2 - y1)
        candidates = [other for column in columns for row in rows for other in cells.get((label, *column, *row), ())]
        iou = _ious(boxes[index : index + 1], boxes[candidates])[0] if candidates else np.zeros(0)
        near = [(candidates[place], float(iou[place])) for place in np.flatnonzero(iou > NEAR_DUPLICATE)]
        if near:
            yield index, *min(near)
        else:
            cells.setdefault((label, *_cell(x1, x2 - x1), *_cell(y1, y2 - y1)), []).append(index)


def _cell(start: float, side: float) -> tuple[int, int]:
    """The cell of a box along one axis: the octave of its side, and the number of such sides before its start."""
    octave = math.frexp(side)[1]
    return octave, math.floor(math.ldexp(start, -octave))


def _cells_within(start: float, side: float) -> list[tuple[int, int]]:
    """The cells along one axis of all boxes that may have an IoU above NEAR_DUPLICATE with a box."""
    slack = 1e-9 * (1 + abs(start) + side)  # so that rounding never excludes a box
    first, last = start - (1 / NEAR_DUPLICATE - 1) * side - slack, start + (1 - NEAR_DUPLICATE) * side + slack
    octaves = range(math.frexp(side * NEAR_DUPLICATE - slack)[1], math.frexp(side / NEAR_DUPLICATE + slack)[1] + 1)
    return [
        (octave, place)
        for octave in octaves
        for place in range(math.floor(math.ldexp(first, -octave)), math.floor(math.ldexp(last, -octave)) + 1)
    ]


def _ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The IoU of every box with every other: [G, 4] and [R, 4] to [G, R]."""
    sides = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
    shared: np.ndarray = sides.clip(0).prod(axis=2)
    areas, other_areas = ((one[:, 2:] - one[:, :2]).prod(axis=1) for one in (boxes, others))
    return shared / (areas[:, None] + other_areas - shared)
