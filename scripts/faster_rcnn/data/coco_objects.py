"""The objects of a COCO document: their images and classes, their boxes and areas, also from outlines.

The box of an object is its `bbox`; without one that has an area, it is the smallest box that holds its `segmentation`.
The area is the document's `area`; without one that is possible, it is that of the segmentation, or else of the box.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from faster_rcnn.data.annotations import AnnotatedImage, Annotation
from faster_rcnn.data.box_notations import Written, refuse_corners
from faster_rcnn.data.coco_records import NO_AREA, Identity, Object, canonical
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.outlines import Box, Mask, Outline, read_outline
from faster_rcnn.data.repairs import Repair, Repairs

NEAR = 3.0, 0.1  # a bbox agrees with its outline if no edge is further away than 3 pixels, or a tenth of the side
LEAST_SHARE = 0.3  # of the box; a smaller area is compared with the outline's
FACTOR = 2.0  # an area is impossible if it is wrong by more, and by more than FEW_PIXELS
FEW_PIXELS = 16.0

BOX_OF_OUTLINE = Repair(
    "box from the outline", "annotations", "have no bbox with an area; the box of their segmentation is used", "add it"
)
DISAGREES = Repair(
    "bbox and segmentation differ",
    "annotations",
    f"have a bbox that differs from the box of their segmentation by more than {NEAR[0]:g} pixels and "
    f"{NEAR[1]:.0%} of its side; the bbox is used",
    "correct one of the two",
)
UNREADABLE_OUTLINE = Repair(
    "unusable segmentation",
    "annotations",
    "have a segmentation that cannot be used; the bbox is used",
    "correct or remove it",
)
TURNED = Repair(
    "negative width or height",
    "annotations",
    "have a negative width or height; the box is read from its other corner",
    "write the top left corner, and a positive width and height",
)
OTHER_AREA = Repair(
    "impossible area",
    "annotations",
    "have an area that neither the outline nor the box can have; that of the outline is used, or of the box",
    "correct it, because APs, APm and APl are divided by area",
)
IGNORED = Repair(
    "ignored objects",
    "annotations",
    "have ignore set; they are neither trained on nor counted, like difficult objects",
    "remove ignore if they are ordinary objects",
)
MIXED_IDS = Repair(
    "mixed ids",
    "annotations",
    'name their image or category by an id of another type, such as "1" for 1; it is found by its text',
    "write ids in one way",
)
SAME_ID = Repair("ids used twice", "annotations", "have the id of another one; both are used", "give each its own id")

Found = TypeVar("Found")


class ById(Generic[Found]):
    """Finds elements by their ids, or by an id with the same text if only one has it."""

    def __init__(self, elements: Mapping[Identity, Found]) -> None:
        self._elements = elements
        self._by_text: dict[str, list[Identity]] | None = None

    def find(self, identity: Identity) -> tuple[Found | None, bool]:
        """The element, None if there is none, and whether its id is exactly this."""
        found = self._elements.get(identity)
        if found is not None:
            return found, True
        if self._by_text is None:
            self._by_text = {}
            for one in self._elements:
                self._by_text.setdefault(canonical(one), []).append(one)
        same = self._by_text.get(canonical(identity), [])
        return (self._elements[same[0]] if len(same) == 1 else None), False


class ObjectReader:
    """Adds the objects of a document to its images.

    labels: the class of each category id, None for a category that is not a class;  left_out: the ids of images that
    have a fault of their own.
    """

    def __init__(
        self,
        images: Mapping[Identity, AnnotatedImage],
        labels: Mapping[Identity, int],
        left_out: Iterable[Identity],
        faults: list[Fault],
        repairs: Repairs,
    ) -> None:
        self._images = ById(images)
        self._labels = ById(labels)
        self._left_out = ById(dict.fromkeys(left_out, True))
        self._faults = faults
        self._repairs = repairs
        self._boxes = array("d")  # of every bbox with its image's size: x, y, width, height, image width, image height
        self._agreeing = {"size": 0, "corners": 0}  # bboxes that agree with their outlines in these notations
        self._ids = array("q")

    def add(self, found: Object, where: str) -> None:
        """Adds an object to its image, or its fault to the faults."""
        if type(found.id) is int and abs(found.id) < 2**63:
            self._ids.append(found.id)
        image, same_image_id = self._images.find(found.image_id)
        label, same_label_id = self._labels.find(found.category_id)
        if image is None:
            if self._left_out.find(found.image_id)[0] is None:
                what = f"annotation {found.id!r} names image {found.image_id!r}, which the file does not list"
                remedy = "add the image or remove the annotation"
                self._faults.append(Fault("annotation of an unknown image", where, what, remedy))
        elif label is None:
            what = f"annotation {found.id!r} names category {found.category_id!r}, which the file does not list"
            self._faults.append(Fault("unknown class", where, what, "add the category or remove the annotation"))
        else:
            if not (same_image_id and same_label_id):
                self._repairs.count(MIXED_IDS, where)
            annotation = self._annotation(found, where, image, label)
            if isinstance(annotation, Fault):
                self._faults.append(annotation)
            else:
                image.annotations.append(annotation)

    def finish(self, file: Path) -> None:
        """Counts ids that are used twice.  Raises ValueError if the boxes are in another notation than COCO's."""
        ids, counts = np.unique(np.frombuffer(self._ids, np.int64) if self._ids else [], return_counts=True)
        for identity, count in zip(ids[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
            for _ in range(count - 1):
                self._repairs.count(SAME_ID, str(file), f"annotation {identity}")
        rows = np.frombuffer(self._boxes, np.float64).reshape(-1, 6) if self._boxes else np.zeros((0, 6))
        refuse_corners(file, Written(rows[:, :4], rows[:, 4:]))
        size, corners = self._agreeing["size"], self._agreeing["corners"]
        if corners >= 2 and corners > size:
            raise ValueError(
                f"{file}: {corners} boxes agree with their segmentation as corners [x1, y1, x2, y2], and only {size} "
                "as [x, y, width, height], which COCO defines; write each bbox as [x1, y1, x2 - x1, y2 - y1]"
            )

    def _annotation(self, found: Object, where: str, image: AnnotatedImage, label: int) -> Annotation | Fault:
        if found.bbox is not None:
            self._boxes.extend((*found.bbox, image.width, image.height))
        outline = self._outline(found, where, image)
        if isinstance(outline, Fault):
            return outline
        if found.bbox is None and outline is None:
            what = f"annotation {found.id!r} has neither a bbox nor a segmentation"
            return Fault("malformed annotation", where, what, "correct or remove it")
        box, written = self._box(found.bbox, f"annotation {found.id!r}", where, outline)
        ignored = str(found.ignore).strip().lower() in ("1", "1.0", "true")
        if ignored:
            self._repairs.count(IGNORED, where)
        return Annotation(
            where,
            title=f"annotation {found.id}",
            written_box=_shown(written),
            box=box,
            label=label,
            crowd=bool(found.iscrowd),
            difficult=bool(found.difficult) or ignored,
            area=self._area(found, where, box, outline),
        )

    def _outline(self, found: Object, where: str, image: AnnotatedImage) -> Outline | Fault | None:
        """The outline; None if there is none, or none that can be used beside a bbox; else a fault."""
        if not found.segmentation:
            return None
        try:
            outline = read_outline(found.segmentation)
            if isinstance(outline, Mask) and (outline.height, outline.width) != (image.height, image.width):
                raise ValueError(
                    f"is a mask of {outline.width}×{outline.height} pixels, but {image.name} is "
                    f"{image.width}×{image.height}"
                )
            if isinstance(outline, Mask) and not outline.area():
                return None
        except ValueError as error:
            if found.bbox is None:
                what = f"annotation {found.id!r} has no bbox, and its segmentation {error}"
                return Fault("malformed annotation", where, what, "correct or remove it")
            self._repairs.count(UNREADABLE_OUTLINE, where, f"annotation {found.id!r}: it {error}")
            return None
        return outline

    def _box(
        self, bbox: list[float] | None, title: str, where: str, outline: Outline | None
    ) -> tuple[Box, Sequence[float]]:
        """The box, and the x, y, width and height that messages show. There is a bbox or an outline."""
        around = outline.box() if outline else None
        if around and (bbox is None or not (bbox[2] and bbox[3])):
            self._repairs.count(BOX_OF_OUTLINE, where, title)
            return around, _as_size(around)
        assert bbox is not None  # or there is an outline
        x, y, width, height = bbox
        if width < 0 or height < 0:
            self._repairs.count(TURNED, where, title)
        box = (min(x, x + width), min(y, y + height), max(x, x + width), max(y, y + height))
        if around:
            agrees = _near(box, around)
            self._agreeing["size"] += agrees
            self._agreeing["corners"] += not agrees and _near((x, y, width, height), around)
            if not agrees:
                self._repairs.count(DISAGREES, where, f"{title}: {_shown(bbox)} and {_shown(_as_size(around))}")
        return box, bbox

    def _area(self, found: Object, where: str, box: Box, outline: Outline | None) -> float | None:
        """The area; None stands for the box's."""
        if not found.area:
            self._repairs.count(NO_AREA, where, f"annotation {found.id!r}")
            return outline.area() or None if outline else None
        of_box = (box[2] - box[0]) * (box[3] - box[1])
        if LEAST_SHARE * of_box <= found.area <= of_box + FEW_PIXELS:
            return found.area
        exact = outline.area() if outline else None
        if exact:
            possible = exact / FACTOR <= found.area <= exact * FACTOR or abs(exact - found.area) <= FEW_PIXELS
        else:
            possible = found.area <= FACTOR * of_box + FEW_PIXELS
        if possible:
            return found.area
        self._repairs.count(
            OTHER_AREA, where, f"annotation {found.id!r}: {found.area:g} instead of {exact or of_box:g}"
        )
        return exact


def _near(box: Box, around: Box) -> bool:
    pixels, share = NEAR
    across, down = max(pixels, share * (around[2] - around[0])), max(pixels, share * (around[3] - around[1]))
    return (
        abs(box[0] - around[0]) <= across
        and abs(box[2] - around[2]) <= across
        and abs(box[1] - around[1]) <= down
        and abs(box[3] - around[3]) <= down
    )


def _as_size(box: Box) -> tuple[float, float, float, float]:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def _shown(values: Iterable[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
