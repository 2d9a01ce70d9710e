"""Parts of a data set: its first images, where the whole set would take too long, and the share of a process."""

from faster_rcnn.data.dataset import Dataset, Sample


class Subset:
    """The first `number` images of a data set, or all of them if it has fewer."""

    def __init__(self, dataset: Dataset, number: int) -> None:
        self.labels = dataset.labels
        self._dataset = dataset
        self._number = min(number, len(dataset))

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Sample:
        if index >= self._number:
            raise IndexError(index)
        return self._dataset[index]

    def size(self, index: int) -> tuple[int, int]:
        return self._dataset.size(index)

    def name(self, index: int) -> str:
        return self._dataset.name(index)


class EveryNth:
    """The images `first`, `first + step` and so on of a data set: the share of one of `step` processes."""

    def __init__(self, dataset: Dataset, first: int, step: int) -> None:
        self.labels = dataset.labels
        self._dataset = dataset
        self._indices = range(first, len(dataset), step)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._indices[index]]

    def size(self, index: int) -> tuple[int, int]:
        return self._dataset.size(self._indices[index])

    def name(self, index: int) -> str:
        return self._dataset.name(self._indices[index])
