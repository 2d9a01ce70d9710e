"""Decodes every image of a data set before it is used, so that a broken image does not stop a long training run."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.contrib.concurrent import thread_map

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.faults import Fault, refuse
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.data.white import use_white
from service.images import file_types
from service.images.decode import damage
from service.images.integrity import WARNINGS

FirstFiles = dict[str, tuple[str, Path]]  # SHA-256 of an image's bytes → the first split and file with these bytes


def open_checked(
    source: str,
    split: str,
    seed: int = 0,
    skip_bad_boxes: bool = False,
    workers: int = os.cpu_count() or 1,
    white: int | None = None,
    val_share: float | None = None,
) -> Dataset:
    """Opens a data set like `open_dataset`, then decodes every image once in `workers` threads.

    With `skip_bad_boxes` the images that cannot be read are left out, as in training. Without it, ValueError is raised,
    listing the first of them. The errors of `open_dataset` are raised too.

    white: that of the detector which will see the images (`white.use_white`); None: it is found in the data.
    """
    dataset = open_dataset(source, split, seed, skip_bad_boxes, val_share)
    use_white(dataset, white)
    check_before_training([dataset], workers)
    return dataset


def check_before_training(datasets: Sequence[Dataset], workers: int) -> list[Fault]:
    """Decodes every image of the folders among `datasets`. Generated images need no check.

    Returns all faults, including those of the annotations: warnings, and what `skip_bad_boxes` left out.
    Raises ValueError, with the first faults in one line, if training cannot start with one of the data sets.
    """
    first_files: FirstFiles = {}
    found: list[Fault] = []
    for dataset in datasets:
        if isinstance(dataset, FolderDataset):
            faults = [*dataset.faults, *check_images(dataset, workers, first_files)]
            refuse(faults, dataset.source, dataset.skip_bad_boxes)
            if not len(dataset):
                raise ValueError(f"{dataset.source}: split {dataset.split} has no image that can be read; add images")
            found += faults
    return found


def summary(faults: Sequence[Fault]) -> str:
    """The number of faults of each kind in one line, the most frequent first."""
    counts = Counter(fault.kind for fault in faults).most_common()
    return ", ".join(f"{count} × {kind}" for kind, count in counts) or "none"


def check_images(dataset: FolderDataset, workers: int, first_files: FirstFiles | None = None) -> list[Fault]:
    """Decodes every image in `workers` threads; the decoders release Python's global lock while they work.

    An image that cannot be trained on causes an error and is removed from the data set. These cause warnings: an image
    that can be decoded although it is damaged, a file name with the extension of another format, and a file with the
    same bytes as another one, in this split or in a split that was checked before with the same `first_files`.
    """
    results = thread_map(
        lambda index: _decode(dataset, index),
        range(len(dataset)),
        max_workers=workers,
        desc=f"{dataset.source}, {dataset.split}",
        unit=" images",
        leave=False,
    )
    faults = [fault for result in results for fault in result.faults]
    faults += _duplicates(dataset, results, {} if first_files is None else first_files)
    dataset.remove(index for index, result in enumerate(results) if not result.readable)
    return faults


@dataclass(frozen=True)
class _Result:
    """The result of decoding one image.  digest: SHA-256 of its bytes, "" if it is not readable."""

    readable: bool
    digest: str
    faults: list[Fault]


def _duplicates(dataset: FolderDataset, results: Sequence[_Result], first_files: FirstFiles) -> list[Fault]:
    """One fault for each file that repeats another's bytes, and one for all images that two splits share."""
    faults = []
    shared: dict[str, list[str]] = {}
    for index, result in enumerate(results):
        if not result.readable:
            continue
        path, name = dataset.path(index), dataset.name(index)
        split, first = first_files.setdefault(result.digest, (dataset.split, path))
        if first == path and split != dataset.split:
            shared.setdefault(split, []).append(name)
        elif first != path:
            what = f"{name} has the same bytes as {first} (split {split})"
            faults.append(Fault("duplicate image", dataset.where(index), what, "keep one of the two", warning=True))
    for split, names in shared.items():
        what = f"split {dataset.split} shares images with split {split}: {len(names)} in total, the first is {names[0]}"
        remedy = "remove them from one of the two, because a detector must not be evaluated on its training images"
        faults.append(Fault("splits share images", dataset.source, what, remedy, warning=True))
    return faults


def _decode(dataset: FolderDataset, index: int) -> _Result:
    where, path = dataset.where(index), dataset.path(index)
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"{dataset.name(index)} cannot be read: {error.strerror}"
        return _Result(False, "", [Fault("unreadable image", where, what, "repair it or remove it from the list")])
    decoded = dataset.decode(index, data)
    if isinstance(decoded, Fault):
        return _Result(False, "", [decoded])
    faults = _format_faults(where, path, data) + _damage(where, path, data)
    return _Result(True, hashlib.sha256(data).hexdigest(), faults)


def _damage(where: str, path: Path, data: bytes) -> list[Fault]:
    """Warnings about an image that can be decoded, although some of its pixels are missing or wrong."""
    remedy = "replace it with the original file, or remove it from the list"
    return [
        Fault("damaged image", where, f"{path.name} is damaged: {WARNINGS[word]}", remedy, warning=True)
        for word in damage(data)
    ]


def _format_faults(where: str, path: Path, data: bytes) -> list[Fault]:
    Image.init()
    named = Image.registered_extensions().get(path.suffix.lower())
    found = file_types.of(data)
    if found is None or named in (None, found.format, "MPO" if found.format == "JPEG" else None):
        return []
    what = f"{path.name} holds {found.words}"
    return [Fault("mislabelled image", where, what, "rename it to match", warning=True)]
