"""A data set in a folder: annotations are checked when it is opened, images are decoded when they are read.

G  objects of an image.  A reader (`coco.py`, `voc.py`) turns files into a `ParsedSplit`; this module checks it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from faster_rcnn.data.annotations import AnnotatedImage, ParsedSplit
from faster_rcnn.data.box_checks import CheckedObject, check_boxes
from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.image_facts import ImageFacts
from faster_rcnn.data.orientation import turn_all
from service.images import formats
from service.images.decode import ImageError, upright
from service.images.depth import WHITE

# At import, so that the processes that load batches do the same.
formats.accept_all()


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image of the data set, without its objects."""

    name: str
    path: Path
    size: tuple[int, int]
    where: str
    size_from_file: bool


class ObjectArrays(NamedTuple):
    """The objects of an image.  The arrays are as in `Sample`."""

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray


_TYPES = (np.float32, np.int64, np.bool_, np.bool_, np.float64)  # of the arrays in `ObjectArrays`


class FolderDataset:
    """One split of a folder, without its faulty images and objects; `faults` lists what was found.

    Objects without area, outside their image, or annotated twice are left out. A box that crosses the border is
    clipped. Near duplicates are left out only with `skip_bad_boxes`. The caller decides whether the faults are
    serious enough to stop (`faults.refuse`). Opening a split empties the annotations of `parsed`.

    exif_boxes: one of `orientation.EXIF_BOXES`, the image that the boxes were drawn on where the sizes do not tell;
    None takes them as upright, and `check_images` warns if that is not certain.

    The service's own code decodes the images, so that training and the service see the same pixels, including those of
    images with EXIF orientation, transparency or 16-bit samples.
    """

    def __init__(self, parsed: ParsedSplit, skip_bad_boxes: bool = False, exif_boxes: str | None = None) -> None:
        self.source = parsed.source
        self.split = parsed.split
        self.labels = parsed.labels
        self.skip_bad_boxes = skip_bad_boxes
        self.white = WHITE  # the value that means white in images of 16 bits; set to that of the detector
        self.exif_boxes = exif_boxes
        self.faults = [*parsed.faults, *class_name_faults(parsed)]
        self.facts: list[ImageFacts] = []  # of each image in order, once `check_images` has decoded them
        images = parsed.images
        if exif_boxes == "stored":
            images, faults = turn_all(parsed.images, parsed.source)
            self.faults += faults
        # _objects: those of all images;  _ends: their number up to and with each image
        usable: list[AnnotatedImage] = []
        counts: list[int] = []
        self._objects = _concatenated(_counted(self._checked(images, usable), counts))
        self._ends = np.cumsum(counts, dtype=np.int64)
        # Entries that were made while annotations are freed would lie between them, and keep their memory occupied.
        self._entries = [
            _Entry(one.name, one.path, (one.height, one.width), one.where, one.size_from_file) for one in usable
        ]

    def __len__(self) -> int:
        return len(self._entries)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the upright image."""
        return self._entries[index].size

    def name(self, index: int) -> str:
        """The image's file name as the annotations give it."""
        return self._entries[index].name

    def has_own_size(self, index: int) -> bool:
        """Whether the annotations state the image's size, so that decoding confirms it."""
        return not self._entries[index].size_from_file

    def has_boxes(self, index: int) -> bool:
        """Whether the image has any object, crowds and difficult ones included."""
        return len(self.all_objects(index).boxes) > 0

    def path(self, index: int) -> Path:
        """The image's file."""
        return self._entries[index].path

    def where(self, index: int) -> str:
        """File and line of the image in the annotations."""
        return self._entries[index].where

    def objects_per_class(self) -> list[int]:
        """The number of boxes of each class, including crowds and difficult objects."""
        counts: list[int] = np.bincount(self._objects.labels, minlength=len(self.labels)).tolist()
        return counts

    def renumber(self, labels: tuple[str, ...]) -> None:
        """Changes the classes to `labels`, which hold every class that has a box; names keep their meaning."""
        numbers = np.array([labels.index(name) if name in labels else -1 for name in self.labels], np.int64)
        self._objects = self._objects._replace(labels=numbers[self._objects.labels])
        self.labels = labels

    def not_trained_on(self) -> tuple[int, int]:
        """The number of crowds, and of difficult objects, in all images."""
        crowd, difficult = self._objects.crowd, self._objects.difficult
        return int(crowd.sum()), int((difficult & ~crowd).sum())

    def all_objects(self, index: int) -> ObjectArrays:
        """All objects of an image, without reading it. The arrays must not be changed."""
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        return ObjectArrays(*(array[start:end] for array in self._objects))

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The objects to train on, without reading the image.  Returns boxes float32 [G, 4] and labels int64 [G]."""
        objects = self.all_objects(index)
        wanted = ~objects.crowd & ~objects.difficult
        return objects.boxes[wanted], objects.labels[wanted]

    def every_object(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The objects to train on of all images: boxes float32 [T, 4], labels int64 [T], and their images' indices."""
        wanted = ~self._objects.crowd & ~self._objects.difficult
        image = np.repeat(np.arange(len(self)), np.diff(self._ends, prepend=0))
        return self._objects.boxes[wanted], self._objects.labels[wanted], image[wanted]

    def __getitem__(self, index: int) -> Sample:
        """Reads a sample.

        Raises ValueError, naming the image, if it cannot be decoded or its size differs from the annotated one.
        """
        entry = self._entries[index]
        data = entry.path.read_bytes()
        pixels = self.decode(index, data)
        if isinstance(pixels, Fault):
            raise ValueError(str(pixels))
        objects = self.all_objects(index)
        return Sample(
            pixels,
            objects.boxes.copy(),
            objects.labels.copy(),
            crowd=objects.crowd.copy(),
            areas=objects.areas.copy(),
            difficult=objects.difficult.copy(),
            file=data,
        )

    def decode(self, index: int, data: bytes) -> np.ndarray | Fault:
        """Decodes the bytes of image `index` to uint8 [H, W, 3], or returns the fault if that is not possible."""
        try:
            pixels = np.asarray(upright(data, white=self.white))
        except ImageError as error:
            fault = self.fault_of(index, error.fault, (0, 0))
            assert fault is not None
            return fault
        return self.fault_of(index, "", pixels.shape[:2]) or pixels

    def fault_of(self, index: int, why: str, size: tuple[int, ...]) -> Fault | None:
        """The fault of image `index` that prevents training on it, if there is one.

        why: why its file cannot be decoded, or "";  size: height and width of the upright image in the file.
        """
        entry = self._entries[index]
        if why:
            what = f"{entry.name} cannot be read: {why}"
            return Fault("unreadable image", entry.where, what, "replace it or remove it from the list")
        if size == entry.size:
            return None
        (height, width), (listed_height, listed_width) = size, entry.size
        what = f"{entry.name} is {width}×{height} upright, listed as {listed_width}×{listed_height}"
        remedy = "correct the listed size, and the boxes if they were drawn at that size"
        if (height, width) == (listed_width, listed_height):
            remedy = (
                "its EXIF orientation rotates it; if its boxes were drawn on the image as it is stored, "
                "add --exif-boxes stored, or else swap the listed sides"
            )
        return Fault("image of another size", entry.where, what, remedy)

    def remove(self, indices: Iterable[int]) -> None:
        """Removes images, which changes the indices of the images after them."""
        removed = set(indices)
        if not removed:
            return
        kept = [index for index in range(len(self._entries)) if index not in removed]
        counts = np.diff(self._ends, prepend=0)[kept]
        self._objects = _concatenated(map(self.all_objects, kept))
        self._entries, self._ends = [self._entries[index] for index in kept], counts.cumsum()

    def _checked(self, images: list[AnnotatedImage], usable: list[AnnotatedImage]) -> Iterator[ObjectArrays]:
        """The objects of each image that can be used and is then added to `usable`. Adds the faults of all images."""
        first_where: dict[str, str] = {}  # by path; a Path keeps the parts that its hash needs
        for image in images:
            if (first := first_where.setdefault(str(image.path), image.where)) != image.where:
                what = f"{image.name} is already listed at {first}"
                self.faults.append(Fault("image listed twice", image.where, what, "remove one of the two"))
                continue
            kept, faults = check_boxes(image, self.skip_bad_boxes)
            self.faults += faults
            usable.append(image)
            yield _arrays(kept)
            image.annotations.clear()  # a million of them need much memory


def _arrays(objects: list[CheckedObject]) -> ObjectArrays:
    annotations = [annotation for annotation, _ in objects]
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    outline_areas = np.array([np.nan if one.area is None else one.area for one in annotations], np.float64)
    # The outline of a box that was clipped leaves the image as well, and its area counts at most as much as the box's.
    written = np.array([one.box for one in annotations], np.float32).reshape(-1, 4)
    is_clipped = (boxes != written).any(axis=1)
    outline_areas[is_clipped] = np.fmin(outline_areas, box_areas)[is_clipped]
    return ObjectArrays(
        boxes,
        labels=np.array([one.label for one in annotations], np.int64),
        crowd=np.array([one.crowd for one in annotations], bool),
        difficult=np.array([one.difficult for one in annotations], bool),
        areas=np.where(np.isnan(outline_areas), box_areas, outline_areas),
    )


def _counted(parts: Iterable[ObjectArrays], counts: list[int]) -> Iterator[ObjectArrays]:
    """`parts`, whose lengths are added to `counts`."""
    for part in parts:
        counts.append(len(part.boxes))
        yield part


def _concatenated(parts: Iterable[ObjectArrays]) -> ObjectArrays:
    """All objects in one set of arrays. Arrays of their own for each of 100,000 images would need ten times as much."""
    buffers = tuple(bytearray() for _ in ObjectArrays._fields)
    for part in parts:
        for buffer, array, kind in zip(buffers, part, _TYPES, strict=True):
            buffer += np.ascontiguousarray(array, kind).tobytes()
    arrays: list[np.ndarray] = [np.frombuffer(buffer, kind) for buffer, kind in zip(buffers, _TYPES, strict=True)]
    return ObjectArrays(arrays[0].reshape(-1, 4), *arrays[1:])


def class_name_faults(parsed: ParsedSplit) -> list[Fault]:
    """Warnings about classes whose names differ only in case or spaces."""
    faults = []
    first_with: dict[str, str] = {}
    for name in parsed.labels:
        plain = " ".join(name.split()).casefold()
        other = first_with.setdefault(plain, name)
        if other is not name:
            what = f"the classes {other!r} and {name!r} differ only in case or spaces, and count as two classes"
            remedy = "rename one if they mean the same"
            faults.append(Fault("similar class names", parsed.source, what, remedy, warning=True))
    return faults
