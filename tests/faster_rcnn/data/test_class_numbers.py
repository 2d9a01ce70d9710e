"""Renumbering a data set's classes to match a detector."""

import numpy as np
import pytest

from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.dataset import Sample


class DogAndCat:
    """An image with a dog and a cat."""

    labels: tuple[str, ...] = ("cat", "dog")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((4, 6, 3), np.uint8), np.array([[0, 0, 2, 2], [1, 1, 3, 3]]), np.array([1, 0]))

    def size(self, index: int) -> tuple[int, int]:
        return 4, 6

    def name(self, index: int) -> str:
        return "two"


def test_classes_get_the_numbers_of_a_detector_with_more_classes() -> None:
    data = renumber(DogAndCat(), ("dog", "N/A 2", "hen", "cat"), "it")
    assert data.labels == ("dog", "N/A 2", "hen", "cat")
    assert data[0].labels.tolist() == [0, 3]
    assert (len(data), data.size(0), data.name(0)) == (1, (4, 6), "two")


def test_data_with_the_same_labels_is_returned_unchanged() -> None:
    data = DogAndCat()
    assert renumber(data, ("cat", "dog"), "it") is data


def test_a_class_that_the_detector_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="classes that it does not know: dog; use other data"):
        renumber(DogAndCat(), ("cat", "hen"), "it")
