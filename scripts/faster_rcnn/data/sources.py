"""Opens a data set by the value of `--data`: `shapes`, `coco:DIR` or `voc:DIR`."""

from pathlib import Path

from faster_rcnn.data.coco import coco_splits, read_coco
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.faults import refuse
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.shapes import SPLITS, Shapes
from faster_rcnn.data.voc import read_voc, voc_splits

READERS = {"coco": (read_coco, coco_splits), "voc": (read_voc, voc_splits)}


def open_dataset(source: str, split: str, seed: int = 0, skip_bad_boxes: bool = False) -> Dataset:
    """Opens a split of a data set.

    source: `shapes` (generated from `seed` as it is read), `coco:DIR` (a folder with `annotations/<split>.json`) or
    `voc:DIR` (a folder with `Annotations`, `JPEGImages` and `ImageSets/Main/<split>.txt`).

    Raises ValueError for an unknown kind of source, and for faulty annotations; the message lists the first faults.
    With `skip_bad_boxes`, faulty boxes and images are left out instead. Raises FileNotFoundError if files are missing.
    """
    if source == "shapes":
        return Shapes(split, seed=seed)
    dataset = open_folder(source, split, skip_bad_boxes)
    refuse(dataset.faults, source, skip_bad_boxes)
    if not len(dataset):
        raise ValueError(f"{source}: split {split} has no image that can be used; add images")
    return dataset


def open_folder(source: str, split: str, skip_bad_boxes: bool = False) -> FolderDataset:
    """Opens a split of a folder even if it has faults, which `faults` lists; faulty images and boxes are left out."""
    kind, folder = _folder(source)
    read, _ = READERS[kind]
    return FolderDataset(read(folder, split), skip_bad_boxes)


def splits_of(source: str) -> list[str]:
    """The splits that a source has.  Raises ValueError for an unknown kind of source."""
    if source == "shapes":
        return list(SPLITS)
    kind, folder = _folder(source)
    _, splits = READERS[kind]
    return splits(folder)


def _folder(source: str) -> tuple[str, Path]:
    kind, _, folder = source.partition(":")
    if kind not in READERS or not folder:
        raise ValueError(f"--data {source!r}: unknown kind; use shapes, coco:DIR or voc:DIR")
    return kind, Path(folder)
