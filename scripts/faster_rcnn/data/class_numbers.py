"""Matches the classes of a data set with those of a detector: by their names, never by their numbers.

A split may list fewer classes than the detector knows, in another order, and others that none of its boxes has.
"""

from dataclasses import replace

import numpy as np

from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.folder import FolderDataset

SHOWN = 5  # classes that a message names


class RenumberedDataset:
    """A data set whose class numbers are those of a detector, which may have more classes, in another order."""

    def __init__(self, dataset: Dataset, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self._dataset = dataset
        self._new_labels = np.array([labels.index(name) for name in dataset.labels], np.int64)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        return replace(sample, labels=self._new_labels[sample.labels])

    def size(self, index: int) -> tuple[int, int]:
        return self._dataset.size(index)

    def name(self, index: int) -> str:
        return self._dataset.name(index)


def renumber(dataset: Dataset, labels: tuple[str, ...], detector: str) -> Dataset:
    """The data set with `labels` as its classes, so that a detector with these labels can use it.

    detector: the detector's name in messages. A data set in a folder is changed itself. If it lists other classes, a
    warning is added to its faults.
    Raises ValueError if the data has objects of a class that the detector does not know.
    """
    if dataset.labels == labels:
        return dataset
    unknown = [name for name in dataset.labels if name not in labels]
    if not isinstance(dataset, FolderDataset):
        _refuse(unknown, detector)
        return RenumberedDataset(dataset, labels)
    counts = dict(zip(dataset.labels, dataset.objects_per_class(), strict=True))
    _refuse([name for name in unknown if counts[name]], detector)
    missing = [name for name in labels if name not in dataset.labels]
    differences = [f"lacks {_named(missing)}"] if missing else []
    differences += [f"has {_named(unknown)}, without any box"] if unknown else []
    if differences:
        what = f"split {dataset.split} does not list the classes of {detector}: it {' and '.join(differences)}; "
        what += "classes are matched by name"
        remedy = "list the same classes in every split if this is not meant"
        dataset.faults.append(Fault("other classes", dataset.source, what, remedy, warning=True))
    dataset.renumber(labels)
    return dataset


def _refuse(unknown: list[str], detector: str) -> None:
    if unknown:
        raise ValueError(
            f"the data has classes that {detector} does not know: {', '.join(unknown)}; "
            "use other data, or rename the classes so that they match"
        )


def unknown_classes(dataset: FolderDataset, labels: tuple[str, ...]) -> list[Fault]:
    """The error that training on `labels` would raise for a split: it has boxes of classes that are not among them."""
    counts = zip(dataset.labels, dataset.objects_per_class(), strict=True)
    unknown = [name for name, count in counts if count and name not in labels]
    if not unknown:
        return []
    what = f"split {dataset.split} has boxes of classes that the training split does not list: {_named(unknown)}"
    remedy = "rename the classes so that they match, or list them in the training split too"
    return [Fault("unknown class", dataset.source, what, remedy, skippable=False)]


def unused_classes(dataset: FolderDataset) -> list[Fault]:
    """A warning about the classes that no box of a split has, which nothing can be learned or measured about."""
    counts = dataset.objects_per_class()
    unused = [name for name, count in zip(dataset.labels, counts, strict=True) if not count]
    if not unused or not sum(counts):
        return []
    what = f"split {dataset.split}: {len(unused)} of {len(dataset.labels)} classes have no box: {_named(unused)}"
    remedy = "annotate objects of them, or remove them from the list of classes"
    return [Fault("class without boxes", dataset.source, what, remedy, warning=True)]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
