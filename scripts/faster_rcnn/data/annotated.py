"""Annotated images in a folder: what COCO's and VOC's readers have in common.

G  objects of an image.  A reader turns files into `Parsed`; here its boxes are checked and its images decoded.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torchvision.ops import box_iou

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.faults import Fault
from service.images.decode import ImageError, upright

# Pixels that a box may reach over the border: one for tools that count pixels from 0 where the format counts from 1,
# one for rounding. It is cut at the border; what reaches further was drawn on another image or at another size.
TOLERANCE = 2.0
MIN_SIDE = 0.1  # pixels; less could vanish in float32 when a large image is resized
NEAR_DUPLICATE = 0.8  # IoU; of two objects of a class so close together, one is nearly always a slip of the hand
LONGEST_SIDE = 1_000_000  # pixels; no image of a data set is longer, so what is written is no size
CHUNK = 256  # boxes compared with all others at a time: the memory for an image with very many stays small


@dataclass(frozen=True)
class Annotation:
    """An object as a file has it.  box: x1, y1, x2, y2;  title and given: what the file calls it and its box."""

    where: str
    title: str
    given: str
    box: tuple[float, float, float, float]
    label: int
    crowd: bool = False
    difficult: bool = False
    area: float | None = None


@dataclass(frozen=True)
class Image:
    """An image as a file has it.  height, width: upright;  where: the place that says so."""

    name: str
    path: Path
    height: int
    width: int
    where: str
    annotations: list[Annotation] = field(default_factory=list)


@dataclass(frozen=True)
class Parsed:
    """What a reader found in the annotations of a split, and the faults that it met on the way."""

    source: str
    split: str
    labels: tuple[str, ...]
    pictures: list[Image]
    faults: list[Fault]


@dataclass(frozen=True)
class _Entry:
    """An image that is part of the data set.  The arrays are as in `Sample`."""

    name: str
    path: Path
    size: tuple[int, int]
    where: str
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray


class AnnotatedImages:
    """A split of a folder: its images without what is faulty, and `faults`, which tells of it.

    Objects without area, outside their image, or there twice are left out; those partly outside are cut at the
    border; near duplicates go only with `skip_bad_boxes`. Whether the faults are grave enough to stop is for the
    caller to say (`faults.refuse`).

    Images are decoded by the service's own code, so that a detector is trained on what it will be served: EXIF
    orientation, transparency and 16-bit samples included.
    """

    def __init__(self, parsed: Parsed, skip_bad_boxes: bool = False) -> None:
        self.source = parsed.source
        self.split = parsed.split
        self.labels = parsed.labels
        self.skip_bad_boxes = skip_bad_boxes
        self.faults = [*parsed.faults, *class_name_faults(parsed)]
        self._entries: list[_Entry] = []
        self._add(parsed.pictures)

    def __len__(self) -> int:
        return len(self._entries)

    def size(self, index: int) -> tuple[int, int]:
        return self._entries[index].size

    def name(self, index: int) -> str:
        return self._entries[index].name

    def path(self, index: int) -> Path:
        return self._entries[index].path

    def where(self, index: int) -> str:
        """The place in the annotations that tells of an image."""
        return self._entries[index].where

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """What is trained on, without reading the image.  Returns boxes float32 [G, 4] and labels int64 [G]."""
        entry = self._entries[index]
        wanted = ~entry.crowd & ~entry.difficult
        return entry.boxes[wanted], entry.labels[wanted]

    def __getitem__(self, index: int) -> Sample:
        """Raises ValueError that names the image if it cannot be read or has another size than is written."""
        entry = self._entries[index]
        pixels = self.decode(index, entry.path.read_bytes())
        if isinstance(pixels, Fault):
            raise ValueError(str(pixels))
        return Sample(
            pixels,
            entry.boxes.copy(),
            entry.labels.copy(),
            crowd=entry.crowd.copy(),
            areas=entry.areas.copy(),
            difficult=entry.difficult.copy(),
        )

    def decode(self, index: int, data: bytes) -> np.ndarray | Fault:
        """The bytes of image `index` as uint8 [H, W, 3], or why they are not what is annotated."""
        entry = self._entries[index]
        try:
            pixels = np.asarray(upright(data))
        except ImageError as error:
            what = f"{entry.name} cannot be read: {error.fault}"
            return Fault("unreadable image", entry.where, what, "repair it or take it off the list")
        if pixels.shape[:2] != entry.size:
            (height, width), (listed_height, listed_width) = pixels.shape[:2], entry.size
            what = f"{entry.name} is {width}×{height} upright, listed as {listed_width}×{listed_height}"
            remedy = "correct the list, and the boxes if they were drawn at that size"
            if (height, width) == (listed_width, listed_height):
                remedy = "its EXIF orientation turns it: save it without, or turn the size and the boxes in the list"
            return Fault("image of another size", entry.where, what, remedy)
        return pixels

    def leave_out(self, indices: Iterable[int]) -> None:
        """Takes images off the data set; those behind them move up."""
        gone = set(indices)
        self._entries = [entry for index, entry in enumerate(self._entries) if index not in gone]

    def _add(self, pictures: list[Image]) -> None:
        seen: dict[Path, str] = {}
        for image in pictures:
            if (first := seen.setdefault(image.path, image.where)) != image.where:
                what = f"{image.name} is listed already at {first}"
                self.faults.append(Fault("image listed twice", image.where, what, "remove one of the two"))
                continue
            kept, faults = check_boxes(image, self.skip_bad_boxes)
            self.faults += faults
            self._entries.append(_entry(image, kept))


def _entry(image: Image, objects: list[tuple[Annotation, np.ndarray]]) -> _Entry:
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    given = np.array([np.nan if one.area is None else one.area for one, _ in objects], np.float64)
    return _Entry(
        image.name,
        image.path,
        (image.height, image.width),
        image.where,
        boxes,
        labels=np.array([one.label for one, _ in objects], np.int64),
        crowd=np.array([one.crowd for one, _ in objects], bool),
        difficult=np.array([one.difficult for one, _ in objects], bool),
        areas=np.where(np.isnan(given), width * height, given),
    )


def escapes(name: str) -> bool:
    """Whether a file name leads out of the folder that it is looked for in."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in name[:2]


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def check_boxes(image: Image, drop_near_duplicates: bool) -> tuple[list[tuple[Annotation, np.ndarray]], list[Fault]]:
    """The objects of an image that can be trained on, their boxes float64 [4] cut at its border; and the faults."""
    kept: list[tuple[Annotation, np.ndarray]] = []
    faults: list[Fault] = []
    border = np.array([image.width, image.height] * 2, np.float64)
    for one in image.annotations:
        box = np.array(one.box, np.float64)
        cut = box.clip(0, border)
        if min(box[2:] - box[:2]) < MIN_SIDE:
            faults.append(no_area(one, image.name))
        elif min(cut[2:] - cut[:2]) < MIN_SIDE:
            faults.append(_outside(one, image, "lies outside"))
        else:
            if abs(box - cut).max() > TOLERANCE:
                faults.append(_outside(one, image, "reaches out of"))
            kept.append((one, cut))
    duplicates = duplicate_faults(image, kept)
    dropped = {place for place, fault in duplicates.items() if drop_near_duplicates or not fault.warning}
    return [one for place, one in enumerate(kept) if place not in dropped], [*faults, *duplicates.values()]


def no_area(one: Annotation, image: str) -> Fault:
    what = f"{one.title}: its box {one.given} in {image} has no area"
    return Fault("box without area", one.where, what, "correct or remove it")


def _outside(one: Annotation, image: Image, how: str) -> Fault:
    what = f"{one.title}: its box {one.given} {how} {image.name}, which is {image.width}×{image.height}"
    return Fault("box outside the image", one.where, what, "correct or remove it")


def duplicate_faults(image: Image, objects: list[tuple[Annotation, np.ndarray]]) -> dict[int, Fault]:
    """The objects, by place, that repeat an earlier one of the same class. Crowds overlap what is in them."""
    faults: dict[int, Fault] = {}
    seen: dict[tuple[float, ...], int] = {}
    places = [place for place, (one, _) in enumerate(objects) if not one.crowd]
    for place in places:
        one, box = objects[place]
        if (first := seen.setdefault((one.label, *box.tolist()), place)) != place:
            faults[place] = _duplicate("duplicate box", image, one, objects[first][0], "is the box of")
    for place, first, iou in _overlapping(objects, [place for place in places if place not in faults]):
        if place not in faults and first not in faults:
            how = f"overlaps with IoU {iou:.2f} the box of"
            faults[place] = _duplicate("near-duplicate box", image, objects[place][0], objects[first][0], how)
    return faults


def _duplicate(kind: str, image: Image, one: Annotation, other: Annotation, how: str) -> Fault:
    what = f"{one.title}: its box {one.given} in {image.name} {how} {other.title} ({other.where})"
    return Fault(kind, one.where, what, "remove one of the two", warning=kind != "duplicate box")


def _overlapping(objects: list[tuple[Annotation, np.ndarray]], places: list[int]) -> Iterator[tuple[int, int, float]]:
    """Pairs of `places`, the later one first, whose objects are of one class and overlap far, and their IoU."""
    if len(places) < 2:
        return
    boxes = torch.from_numpy(np.array([objects[place][1] for place in places]))
    labels = torch.tensor([objects[place][0].label for place in places])
    for start in range(0, len(places), CHUNK):
        iou = box_iou(boxes[start : start + CHUNK], boxes[: start + CHUNK])
        alike = labels[start : start + CHUNK, None] == labels[None, : start + CHUNK]
        for row, first in ((iou > NEAR_DUPLICATE) & alike).tril(start - 1).nonzero().tolist():
            yield places[start + row], places[first], iou[row, first].item()


def class_name_faults(parsed: Parsed) -> list[Fault]:
    """Names of classes that a person would take for one another."""
    faults = []
    seen: dict[str, str] = {}
    for name in parsed.labels:
        plain = " ".join(name.split()).casefold()
        other = seen.setdefault(plain, name)
        if other is not name:
            what = f"the classes {other!r} and {name!r} differ only in case or spaces, and count as two"
            faults.append(Fault("alike class names", parsed.source, what, "rename one if they are one", warning=True))
    return faults
