"""Every image of a data set is decoded before its use, so that none is found broken in the middle of a long run."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.contrib.concurrent import thread_map

from faster_rcnn.data.annotated import AnnotatedImages
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.faults import Fault, refuse
from faster_rcnn.data.sources import open_dataset
from service.images.decode import FORMATS

Seen = dict[str, tuple[str, Path]]  # SHA-256 of an image's bytes to the split and the file where it was first met


def open_checked(
    source: str, split: str, seed: int = 0, skip_bad_boxes: bool = False, workers: int = os.cpu_count() or 1
) -> Dataset:
    """`open_dataset` with every image decoded once, in `workers` threads: nothing in it is found broken later.

    With `skip_bad_boxes` it is without the images that cannot be read, as in training.
    Raises what `open_dataset` does, and ValueError that names the first images that cannot be read, otherwise.
    """
    dataset = open_dataset(source, split, seed, skip_bad_boxes)
    check_before_training([dataset], workers)
    return dataset


def check_before_training(datasets: Sequence[Dataset], workers: int) -> list[Fault]:
    """Reads every image of every folder among `datasets`; what is drawn as it is read needs no check.

    Returns all faults, those of the annotations too: warnings, and what `skip_bad_boxes` has left out.
    Raises ValueError with the first faults in one line if training cannot start with one of the data sets.
    """
    seen: Seen = {}
    found: list[Fault] = []
    for dataset in datasets:
        if isinstance(dataset, AnnotatedImages):
            faults = [*dataset.faults, *check_images(dataset, workers, seen)]
            refuse(faults, dataset.source, dataset.skip_bad_boxes)
            if not len(dataset):
                raise ValueError(f"{dataset.source}: split {dataset.split} has no image that can be read; add some")
            found += faults
    return found


def summary(faults: Sequence[Fault]) -> str:
    """How many faults there are of each kind, the most frequent first, in one line."""
    counts = Counter(fault.kind for fault in faults).most_common()
    return ", ".join(f"{count} × {kind}" for kind, count in counts) or "none"


def check_images(dataset: AnnotatedImages, workers: int, seen: Seen | None = None) -> list[Fault]:
    """Decodes every image in `workers` threads: the decoders let go of the interpreter's lock while they work.

    What cannot be trained on is an error, and left out of the data set. A file whose name tells of another format is a
    warning, and so are the same bytes twice, here or in a split checked before with the same `seen`.
    """
    looks = thread_map(
        lambda index: _look(dataset, index),
        range(len(dataset)),
        max_workers=workers,
        desc=f"{dataset.source}, {dataset.split}",
        unit=" images",
        leave=False,
    )
    faults = [fault for look in looks for fault in look.faults]
    faults += _repeated(dataset, looks, {} if seen is None else seen)
    dataset.leave_out(index for index, look in enumerate(looks) if not look.readable)
    return faults


@dataclass(frozen=True)
class _Look:
    readable: bool
    digest: str
    faults: list[Fault]


def _repeated(dataset: AnnotatedImages, looks: Sequence[_Look], seen: Seen) -> list[Fault]:
    """Files with the bytes of another, one by one; and in one line the images that two splits share."""
    faults = []
    shared: dict[str, list[str]] = {}
    for index, look in enumerate(looks):
        path, name = dataset.path(index), dataset.name(index)
        split, first = seen.setdefault(look.digest, (dataset.split, path)) if look.readable else (dataset.split, path)
        if first == path and split != dataset.split:
            shared.setdefault(split, []).append(name)
        elif first != path:
            what = f"{name} has the same bytes as {first} (split {split})"
            faults.append(Fault("duplicate image", dataset.where(index), what, "keep one of the two", warning=True))
    for split, names in shared.items():
        what = f"images of split {dataset.split} are in split {split} too: {len(names)}, the first {names[0]}"
        remedy = "what is measured on images that were trained on says little"
        faults.append(Fault("splits share images", dataset.source, what, remedy, warning=True))
    return faults


def _look(dataset: AnnotatedImages, index: int) -> _Look:
    where, path = dataset.where(index), dataset.path(index)
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"{dataset.name(index)} cannot be read: {error.strerror}"
        return _Look(False, "", [Fault("unreadable image", where, what, "mend it or take it off the list")])
    decoded = dataset.decode(index, data)
    if isinstance(decoded, Fault):
        return _Look(False, "", [decoded])
    return _Look(True, hashlib.sha256(data).hexdigest(), _format_faults(where, path, data))


def _format_faults(where: str, path: Path, data: bytes) -> list[Fault]:
    Image.init()
    named = Image.registered_extensions().get(path.suffix.lower())
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        found = "JPEG" if image.format == "MPO" else image.format  # several JPEGs in one, as some cameras write them
    if named in (None, found):
        return []
    what = f"{path.name} is a {found} image by its content"
    return [Fault("mislabelled image", where, what, "rename it", warning=True)]
