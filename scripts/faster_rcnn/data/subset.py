"""The first images of a data set, used where the whole set would take too long."""

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
