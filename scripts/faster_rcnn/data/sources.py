"""Data sets by the name that the command lines take."""

from pathlib import Path

from faster_rcnn.data.annotated import AnnotatedImages
from faster_rcnn.data.coco import coco_splits, read_coco
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.faults import refuse
from faster_rcnn.data.shapes import SPLITS, Shapes
from faster_rcnn.data.voc import read_voc, voc_splits

READERS = {"coco": (read_coco, coco_splits), "voc": (read_voc, voc_splits)}


def check_labels(dataset: Dataset, labels: tuple[str, ...], detector: str) -> None:
    """Raises ValueError if a data set numbers its classes otherwise than a detector does."""
    if dataset.labels != labels:
        raise ValueError(
            f"{detector} knows the classes {', '.join(labels)}; the data has {', '.join(dataset.labels)}; "
            "take data with the same classes in the same order"
        )


def open_dataset(source: str, split: str, seed: int = 0, skip_bad_boxes: bool = False) -> Dataset:
    """`shapes` is drawn from `seed` as it is read; `coco:DIR` is a folder with `annotations/<split>.json`, `voc:DIR`
    one with `Annotations`, `JPEGImages` and `ImageSets/Main/<split>.txt`.

    Raises ValueError for a source of another kind, or one line that names the first faults of the annotations unless
    `skip_bad_boxes` leaves them out; FileNotFoundError where files are missing.
    """
    if source == "shapes":
        return Shapes(split, seed=seed)
    dataset = open_folder(source, split, skip_bad_boxes)
    refuse(dataset.faults, source, skip_bad_boxes)
    if not len(dataset):
        raise ValueError(f"{source}: split {split} has no image that can be used; add some")
    return dataset


def open_folder(source: str, split: str, skip_bad_boxes: bool = False) -> AnnotatedImages:
    """A split of a folder whatever its faults, which it keeps; what is faulty is not among its images and boxes."""
    kind, folder = _folder(source)
    read, _ = READERS[kind]
    return AnnotatedImages(read(folder, split), skip_bad_boxes)


def splits_of(source: str) -> list[str]:
    """The splits that a source has.  Raises ValueError for a source of no known kind."""
    if source == "shapes":
        return list(SPLITS)
    kind, folder = _folder(source)
    _, splits = READERS[kind]
    return splits(folder)


def _folder(source: str) -> tuple[str, Path]:
    kind, _, folder = source.partition(":")
    if kind not in READERS or not folder:
        raise ValueError(f"--data {source!r} is of no known kind; there are: shapes, coco:DIR, voc:DIR")
    return kind, Path(folder)
