"""Matching a data set's classes with a detector's by their names."""

import json
from pathlib import Path

import numpy as np
import pytest

from faster_rcnn.data.class_numbers import renumber, unused_classes
from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.sources import open_folder
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_image


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


def opened(folder: Path, val: dict[str, int], boxes: list[int]) -> tuple[FolderDataset, FolderDataset]:
    """The splits of a data set: train with cat 1, dog 2 and hen 3, and val with these categories and boxes."""
    (folder / "annotations").mkdir()
    for split, categories, used in (("train", {"cat": 1, "dog": 2, "hen": 3}, [1, 2, 3]), ("val", val, boxes)):
        write_image(folder / f"{split}.jpg")
        document = {
            "images": [image_entry(1, f"{split}.jpg")],
            "categories": [{"id": number, "name": name} for name, number in categories.items()],
            "annotations": [
                annotation_entry(number, 1, (10 * number, 20, 9, 9)) | {"category_id": number} for number in used
            ],
        }
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(document))
    return open_folder(f"coco:{folder}", "train"), open_folder(f"coco:{folder}", "val")


@pytest.mark.contract("6.4")
def test_a_split_may_list_fewer_classes_in_another_order(tmp_path: Path) -> None:
    train, val = opened(tmp_path, {"hen": 1, "cat": 5}, [1, 5])
    assert val.labels == ("hen", "cat")
    assert renumber(val, train.labels, "train") is val
    assert val.labels == ("cat", "dog", "hen")
    assert val[0].labels.tolist() == [2, 0]  # hen and cat, by name
    assert [str(fault).partition(": warning: ")[2] for fault in val.faults] == [
        "split val does not list the classes of train: it lacks dog; classes are matched by name; list the same "
        "classes in every split if this is not meant"
    ]


def test_reordered_classes_are_matched_without_a_word(tmp_path: Path) -> None:
    train, val = opened(tmp_path, {"hen": 1, "dog": 2, "cat": 3}, [3])
    renumber(val, train.labels, "train")
    assert val.objects(0)[1].tolist() == [0]
    assert val.faults == []


def test_a_class_that_only_val_has_is_left_out_if_no_box_has_it_and_refused_otherwise(tmp_path: Path) -> None:
    train, val = opened(tmp_path, {"ant": 1, "cat": 2, "dog": 3, "hen": 4}, [2, 3])
    renumber(val, train.labels, "train")
    assert val[0].labels.tolist() == [0, 1]
    assert "it has ant, without any box; classes are matched by name" in val.faults[0].what
    (tmp_path / "other").mkdir()
    train, val = opened(tmp_path / "other", {"ant": 1, "cat": 2}, [1, 2])
    with pytest.raises(ValueError, match="the data has classes that train does not know: ant; use other data"):
        renumber(val, train.labels, "train")


def test_classes_without_boxes_are_reported(tmp_path: Path) -> None:
    train, val = opened(tmp_path, {"cat": 1, "dog": 2, "hen": 3}, [2])
    assert unused_classes(train) == []
    assert unused_classes(val)[0].warning
    assert unused_classes(val)[0].what == "split val: 2 of 3 classes have no box: cat, hen"
