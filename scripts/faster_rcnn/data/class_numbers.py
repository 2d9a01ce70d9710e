"""Renumbers the classes of a data set to match a detector."""

from dataclasses import replace

import numpy as np

from faster_rcnn.data.dataset import Dataset, Sample


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
    """The data set with `labels` as its classes, so that a detector with these labels can be evaluated on it.

    detector: the detector's name in messages.
    Raises ValueError if the data set has a class that the detector does not know.
    """
    if dataset.labels == labels:
        return dataset
    if unknown := [name for name in dataset.labels if name not in labels]:
        raise ValueError(
            f"the data has classes that {detector} does not know: {', '.join(unknown)}; "
            "use other data, or rename the classes so that they match"
        )
    return RenumberedDataset(dataset, labels)
