"""The order of training images, and how they form batches."""

from itertools import islice

import numpy as np
import pytest
import torch

from faster_rcnn.data.loader import Loading, Share, batch_order, training_batches
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.resize import ResizeRule


def test_an_epoch_contains_every_image_at_most_once() -> None:
    dataset = Shapes("train", length=103)
    batches = list(islice(batch_order(dataset, 5, seed=0), 40))
    first, second = batches[:20], batches[20:]
    assert sorted({index for batch in first for index, _ in batch}) == sorted(
        index for batch in first for index, _ in batch
    )
    assert sum(len(batch) for batch in first) == 100  # 103 images in batches of 5: 3 are left over
    assert first != second


@pytest.mark.parametrize("start", [0, 1, 7, 16, 19, 20, 33])
def test_the_order_can_continue_from_any_batch(start: int) -> None:
    dataset = Shapes("train", length=103)
    whole = list(islice(batch_order(dataset, 5, seed=3), 45))
    assert list(islice(batch_order(dataset, 5, seed=3, start=start), 45 - start)) == whole[start:]


def test_the_images_of_a_batch_have_similar_aspect_ratios() -> None:
    dataset = Shapes("train", length=400)
    spreads = []
    for batch in islice(batch_order(dataset, 8, seed=0), 40):
        ratios = [np.log(np.divide(*dataset.size(index))) for index, _ in batch]
        spreads.append(max(ratios) - min(ratios))
    assert np.median(spreads) < 0.25  # out of 1.39 = ln 2 - ln 1/2 in the whole data set


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images, but a batch needs 4; lower --batch-size"):
        next(batch_order(Shapes("train", length=3), 4, seed=0))


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    dataset, rule = Shapes("train", length=64), ResizeRule(96, 192)
    here = list(islice(training_batches(dataset, rule, 16, Loading(4, seed=0)), 3))
    there = list(islice(training_batches(dataset, rule, 16, Loading(4, seed=0, workers=1)), 3))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.sizes, other.sizes)
        assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(one.truth, other.truth, strict=True))


def test_resized_images_and_their_boxes_lie_at_the_top_left() -> None:
    dataset, rule = Shapes("train", length=64), ResizeRule(96, 192)
    batch = next(training_batches(dataset, rule, 16, Loading(4, seed=0)))
    assert batch.images.shape[1] % 16 == batch.images.shape[2] % 16 == 0
    for image, (height, width), truth in zip(batch.images, batch.sizes.tolist(), batch.truth, strict=True):
        assert min(height, width) == 96 or max(height, width) == 192
        assert image[height:].eq(0).all()
        assert image[:, width:].eq(0).all()
        assert truth.boxes.dtype == torch.float32
        assert (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()
        assert (truth.boxes[:, 2] <= width + 1e-3).all()


@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_processes_and_micro_batches_share_every_batch_without_overlap(processes: int, micro_batches: int) -> None:
    dataset = Shapes("train", length=103)
    whole = list(islice(batch_order(dataset, 8, seed=1), 6))
    shares = [
        list(islice(Share(rank, processes, micro_batches).of(batch_order(dataset, 8, seed=1)), 6 * micro_batches))
        for rank in range(processes)
    ]
    for number, batch in enumerate(whole):
        first, end = number * micro_batches, (number + 1) * micro_batches
        assert [item for share in shares for micro_batch in share[first:end] for item in micro_batch] == batch


def test_a_batch_that_cannot_be_divided_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="6 images cannot be divided evenly among 2 processes × 2 micro-batches"):
        training_batches(Shapes("train", 40), ResizeRule(96, 192), 16, Loading(6, seed=0), share=Share(0, 2, 2))


def test_every_image_of_every_batch_has_its_own_seed() -> None:
    seeds = [seed for batch in islice(batch_order(Shapes("train", 103), 5, seed=0), 60) for _, seed in batch]
    assert len(set(seeds)) == 300
