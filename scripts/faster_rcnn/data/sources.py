"""Data sets by the name that the command lines take."""

from pathlib import Path

from faster_rcnn.data.coco import Coco
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.shapes import Shapes


def check_labels(dataset: Dataset, labels: tuple[str, ...], detector: str) -> None:
    """Raises ValueError if a data set numbers its classes otherwise than a detector does."""
    if dataset.labels != labels:
        raise ValueError(
            f"{detector} knows the classes {', '.join(labels)}; the data has {', '.join(dataset.labels)}; "
            "take data with the same classes in the same order"
        )


def open_dataset(source: str, split: str, seed: int = 0) -> Dataset:
    """`shapes` is drawn from `seed` as it is read; `coco:DIR` is a folder with `annotations/<split>.json`.

    Raises ValueError for a source of another kind, FileNotFoundError where files are missing.
    """
    if source == "shapes":
        return Shapes(split, seed=seed)
    kind, _, folder = source.partition(":")
    if kind == "coco" and folder:
        return Coco(Path(folder), split)
    raise ValueError(f"--data {source!r} is of no known kind; there are: shapes, coco:DIR")
