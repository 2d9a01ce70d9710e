"""What a data set holds, in words: images, sizes, classes, objects, and values of more than 8 bits."""

from collections import Counter

import numpy as np

from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.white import against_white, found_white


def describe(dataset: FolderDataset, white: int | None = None) -> str:
    """The number of images, their sizes, and the number of objects of each class.

    white: that of the training split; None: `dataset` is the training split, or stands alone.
    """
    labels = [dataset.objects(index)[1] for index in range(len(dataset))]
    objects = np.bincount(np.concatenate(labels), minlength=len(dataset.labels))
    images = np.bincount(np.concatenate([np.unique(one) for one in labels]), minlength=len(dataset.labels))
    sizes = Counter(dataset.size(index) for index in range(len(dataset))).most_common()
    shown = ", ".join(f"{width}×{height} ({count})" for (height, width), count in sizes[:5])
    more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    empty = sum(len(one) == 0 for one in labels)
    width = max(map(len, dataset.labels))
    lines = [f"{len(dataset)} images, {empty} of them without objects; sizes: {shown}{more}"]
    lines.append(f"{'class':{width}}  objects  images")
    for name, of_objects, of_images in zip(dataset.labels, objects, images, strict=True):
        lines.append(f"{name:{width}} {of_objects:8} {of_images:9}")
    lines += _not_counted(dataset)
    deep = [facts.values for facts in dataset.facts if facts.values]
    place = len(dataset.facts), dataset.source, dataset.split
    if text := found_white(deep, *place).text if white is None else against_white(deep, white, *place):
        lines.append(text)
    return "\n".join(lines)


def objects_per_image(dataset: FolderDataset) -> list[int]:
    """How many objects a detector should find in each image: all but crowds and difficult objects."""
    return [len(dataset.objects(index)[1]) for index in range(len(dataset))]


def _not_counted(dataset: FolderDataset) -> list[str]:
    crowds, difficult = dataset.not_trained_on()
    counts = [f"{number} {name}" for number, name in ((crowds, "crowds"), (difficult, "difficult objects")) if number]
    if not counts:
        return []
    rule = "not counted above and not trained on; detections in them count neither as true nor as false"
    return [f"{' and '.join(counts)}: {rule}" + (" (difficult ones: train --with-difficult)" if difficult else "")]
