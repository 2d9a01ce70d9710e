"""A data set whose classes are numbered as a detector numbers them."""

from dataclasses import replace

import numpy as np

from faster_rcnn.data.dataset import Dataset, Sample


class Renumbered:
    """The data set with the labels of a detector that knows its classes and perhaps more, in whatever order."""

    def __init__(self, dataset: Dataset, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self._dataset = dataset
        self._places = np.array([labels.index(name) for name in dataset.labels], np.int64)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        return replace(sample, labels=self._places[sample.labels])

    def size(self, index: int) -> tuple[int, int]:
        return self._dataset.size(index)

    def name(self, index: int) -> str:
        return self._dataset.name(index)


def renumber(dataset: Dataset, labels: tuple[str, ...], detector: str) -> Dataset:
    """The data set as a detector with these labels can be measured on it.

    Raises ValueError if it has a class that the detector does not know.
    """
    if dataset.labels == labels:
        return dataset
    if unknown := [name for name in dataset.labels if name not in labels]:
        raise ValueError(
            f"the data has classes that {detector} does not know: {', '.join(unknown)}; "
            "take other data, or name the detector's classes as the data does"
        )
    return Renumbered(dataset, labels)
