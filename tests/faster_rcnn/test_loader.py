from itertools import islice

import numpy as np
import pytest
import torch

from faster_rcnn.data.loader import _Items, batch_order, training_batches
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.resize import ResizeRule


def test_every_picture_comes_once_an_epoch() -> None:
    dataset = Shapes("train", length=103)
    batches = list(islice(batch_order(dataset, 5, seed=0), 40))
    first, second = batches[:20], batches[20:]
    assert sorted({index for batch in first for index, _ in batch}) == sorted(
        index for batch in first for index, _ in batch
    )
    assert sum(len(batch) for batch in first) == 100  # 103 pictures, batches of 5
    assert first != second


@pytest.mark.parametrize("start", [0, 1, 7, 16, 19, 20, 33])
def test_the_order_can_be_taken_up_anywhere(start: int) -> None:
    dataset = Shapes("train", length=103)
    whole = list(islice(batch_order(dataset, 5, seed=3), 45))
    assert list(islice(batch_order(dataset, 5, seed=3, start=start), 45 - start)) == whole[start:]


def test_a_batch_holds_pictures_of_like_shape() -> None:
    dataset = Shapes("train", length=400)
    spreads = []
    for batch in islice(batch_order(dataset, 8, seed=0), 40):
        ratios = [np.log(np.divide(*dataset.size(index))) for index, _ in batch]
        spreads.append(max(ratios) - min(ratios))
    assert np.median(spreads) < 0.25  # of 1.39 in all


def test_too_few_pictures_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="3 pictures, a batch takes 4; lower --batch-size"):
        next(batch_order(Shapes("train", length=3), 4, seed=0))


def test_batches_are_the_same_from_any_number_of_workers() -> None:
    dataset, rule = Shapes("train", length=64), ResizeRule(96, 192)
    here = list(islice(training_batches(dataset, rule, 16, 4, 0, 0, workers=0), 3))
    there = list(islice(training_batches(dataset, rule, 16, 4, 0, 0, workers=1), 3))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.sizes, other.sizes)
        assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(one.truth, other.truth, strict=True))


def test_resized_pictures_lie_top_left_with_their_boxes() -> None:
    dataset, rule = Shapes("train", length=64), ResizeRule(96, 192)
    batch = next(training_batches(dataset, rule, 16, 4, 0, 0, workers=0))
    assert batch.images.shape[1] % 16 == batch.images.shape[2] % 16 == 0
    for image, (height, width), truth in zip(batch.images, batch.sizes.tolist(), batch.truth, strict=True):
        assert min(height, width) == 96 or max(height, width) == 192
        assert image[height:].eq(0).all()
        assert image[:, width:].eq(0).all()
        assert truth.boxes.dtype == torch.float32
        assert (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()
        assert (truth.boxes[:, 2] <= width + 1e-3).all()


def test_a_mirrored_picture_takes_its_boxes_along() -> None:
    dataset, rule = Shapes("train", length=64), ResizeRule(96, 192)
    plain, mirrored = _Items(dataset, rule)[(5, False)], _Items(dataset, rule)[(5, True)]
    width = plain.image.shape[1]
    assert np.array_equal(mirrored.image[:, ::-1], plain.image)
    np.testing.assert_allclose(mirrored.boxes[:, 0], width - plain.boxes[:, 2], atol=1e-3)
    np.testing.assert_allclose(mirrored.boxes[:, [1, 3]], plain.boxes[:, [1, 3]])
