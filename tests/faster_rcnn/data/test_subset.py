"""The first images of a data set."""

import pytest

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.subset import Subset


def test_a_subset_has_the_first_images() -> None:
    whole = Shapes("val")
    first = Subset(whole, 3)
    assert [first.name(index) for index in range(len(first))] == [whole.name(index) for index in range(3)]
    assert first.size(2) == whole.size(2)
    assert (first[1].image == whole[1].image).all()
    assert len(list(first)) == 3
    assert len(Subset(whole, 10**9)) == len(whole)
    with pytest.raises(IndexError):
        first[3]
