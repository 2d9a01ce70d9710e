"""The generated data set `shapes`."""

from pathlib import Path

import numpy as np
import pytest

from faster_rcnn.data import shapes
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.shapes import LABELS, Shapes, write_coco
from faster_rcnn.data.sources import open_dataset

IMAGES = 60


@pytest.fixture(scope="module")
def images() -> list:
    dataset = Shapes("val")
    return [dataset[index] for index in range(IMAGES)]


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    first, again = Shapes("train")[11], Shapes("train", length=20)[11]
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    for other in (Shapes("train")[12], Shapes("val")[11], Shapes("train", seed=1)[11]):
        assert not (first.image.shape == other.image.shape and np.array_equal(first.image, other.image))


def test_sizes_and_aspect_ratios_are_as_documented(images: list) -> None:
    dataset = Shapes("val")
    for index, sample in enumerate(images):
        height, width = sample.image.shape[:2]
        assert dataset.size(index) == (height, width)
        assert min(height, width) >= 199
        assert max(height, width) <= 1001
        assert 0.49 < height / width < 2.04
    ratios = [sample.image.shape[0] / sample.image.shape[1] for sample in images]
    assert min(ratios) < 0.65
    assert max(ratios) > 1.5


def test_boxes_lie_inside_their_image_and_have_an_area(images: list) -> None:
    for sample in images:
        height, width = sample.image.shape[:2]
        assert (sample.boxes >= 0).all()
        assert (sample.boxes[:, 2] <= width).all()
        assert (sample.boxes[:, 3] <= height).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert len(sample.boxes) == len(sample.labels)


def test_there_are_objects_of_all_classes_and_sizes_and_some_images_are_empty(images: list) -> None:
    assert set(np.concatenate([sample.labels for sample in images]).tolist()) == set(range(len(LABELS)))
    assert any(len(sample.labels) == 0 for sample in images)
    shares = [
        float(np.prod(box[2:] - box[:2]) / np.prod(sample.image.shape[:2])) for sample in images for box in sample.boxes
    ]
    assert min(shares) < 0.02
    assert max(shares) > 0.5


def test_a_box_encloses_its_object_tightly() -> None:
    """The box of an object on a flat background, without blur and noise, matches the pixels that changed."""
    rng = np.random.default_rng(3)
    checked = 0
    for _ in range(60):
        canvas = np.full((300, 400, 3), 127.0, np.float32)
        boxes, _ = shapes.draw_objects(rng, canvas)
        if len(boxes) != 1:
            continue
        rows, columns = np.nonzero(np.abs(canvas - 127).sum(axis=2) > 5)
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(boxes[0], drawn, atol=1.5)
        checked += 1
    assert checked >= 5


def test_an_index_outside_the_split_is_refused() -> None:
    with pytest.raises(IndexError, match=r"images 0..4, not 5"):
        Shapes("test", length=5)[5]
    with pytest.raises(ValueError, match="no split 'dev'; choose from: train, val, test"):
        Shapes("dev")


def test_a_split_is_the_same_after_writing_and_reading_it_in_cocos_format(tmp_path: Path) -> None:
    dataset = Shapes("val", length=4)
    write_coco(dataset, tmp_path)
    again = open_dataset(f"coco:{tmp_path}", "val")
    assert isinstance(again, FolderDataset)
    assert again.labels == dataset.labels
    assert len(again) == 4
    for index in range(4):
        assert again.size(index) == dataset.size(index)
        assert np.array_equal(again[index].image, dataset[index].image)
        assert np.array_equal(again[index].labels, dataset[index].labels)
        np.testing.assert_allclose(again[index].boxes, dataset[index].boxes, atol=1e-3)
