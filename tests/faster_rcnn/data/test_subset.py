"""A data set cut to its first images."""

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.subset import FirstImages


def test_the_subset_has_the_first_images_and_no_others() -> None:
    whole = Shapes("val")
    first = FirstImages(whole, 3)
    assert [first.name(index) for index in range(len(first))] == [whole.name(index) for index in range(3)]
    assert first.size(2) == whole.size(2)
    assert (first[1].image == whole[1].image).all()
    assert len(list(first)) == 3
    assert len(FirstImages(whole, 10**9)) == len(whole)
