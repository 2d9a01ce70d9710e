"""Opening data sets by the value of --data."""

from pathlib import Path

import numpy as np
import pytest

from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset, open_folder, splits_of
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder, write_image


def test_shapes_are_generated_from_the_seed() -> None:
    dataset = open_dataset("shapes", "val", seed=3)
    assert np.array_equal(dataset[0].image, Shapes("val", seed=3)[0].image)
    assert splits_of("shapes") == ["train", "val", "test"]


@pytest.mark.parametrize("source", ["imagenet", "imagenet:folder", "coco", "coco:", ""])
@pytest.mark.contract("6.3")
def test_an_unknown_kind_of_source_is_refused(source: str) -> None:
    for use in (open_dataset, open_folder, lambda source, _: splits_of(source)):
        with pytest.raises(ValueError, match=r"unknown kind, .*; use a folder, a zip file, .*coco:PATH"):
            use(source, "train")


def test_faulty_boxes_are_refused_or_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    annotations = [annotation_entry(1, 1), annotation_entry(2, 1, (10, 20, 0, 20))]
    source = write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], annotations)
    with pytest.raises(ValueError, match=r"train.json:7:1: annotation 2: .* has no area; .*--skip-bad-boxes leaves"):
        open_dataset(source, "train")
    assert len(open_dataset(source, "train", skip_bad_boxes=True)[0].boxes) == 1
    whatever_its_faults = open_folder(source, "train")
    assert isinstance(whatever_its_faults, FolderDataset)
    assert [fault.kind for fault in whatever_its_faults.faults] == ["box without area"]
    assert splits_of(source) == ["train"]
