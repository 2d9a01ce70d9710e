"""Decoding all images before training: broken, mislabelled and duplicate files."""

import os
from pathlib import Path

import pytest

from faster_rcnn.data.decode_check import check_before_training, check_images, open_checked, summary
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset, open_folder
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder, write_image

ABUSE = Path(os.environ.get("REAL_DATA_DIR", "")) / "abuse"
real = pytest.mark.skipif("REAL_DATA_DIR" not in os.environ, reason="REAL_DATA_DIR is not set")


def test_images_that_cannot_be_trained_on_are_reported_and_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "good.jpg")
    write_image(tmp_path / "cut.jpg", (100, 60), "blue")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:400])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    write_image(tmp_path / "large.jpg", (120, 60), "green")
    images = [image_entry(place, f"{name}.jpg") for place, name in enumerate(["good", "cut", "text", "empty", "large"])]
    source = write_coco_folder(tmp_path, images, [annotation_entry(1, 0), annotation_entry(2, 4)])
    dataset = open_folder(source, "train")
    assert len(dataset) == 5
    faults = check_images(dataset, workers=2)
    assert [(fault.kind, fault.where.rpartition("train.json")[2]) for fault in faults] == [
        ("unreadable image", ":3:1"),
        ("unreadable image", ":4:1"),
        ("unreadable image", ":5:1"),
        ("image of another size", ":6:1"),
    ]
    assert "large.jpg is 120×60 upright, listed as 100×60" in str(faults[3])
    assert [dataset.name(index) for index in range(len(dataset))] == ["good.jpg"]
    assert dataset[0].boxes.tolist() == [[10, 20, 40, 40]]
    with pytest.raises(ValueError, match=r"cut.jpg cannot be read.* and 1 more · faster-rcnn check --data coco:"):
        check_before_training([open_dataset(source, "train")], workers=2)
    skipping = open_dataset(source, "train", skip_bad_boxes=True)
    assert summary(check_before_training([skipping, Shapes("val")], workers=2)) == (
        "3 × unreadable image, 1 × image of another size"
    )
    assert len(skipping) == 1


def test_open_checked_refuses_broken_images_or_leaves_them_out(tmp_path: Path) -> None:
    write_image(tmp_path / "good.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    source = write_coco_folder(
        tmp_path, [image_entry(1, "text.jpg"), image_entry(2, "good.jpg")], [annotation_entry(1, 2)]
    )
    with pytest.raises(ValueError, match=r"text.jpg cannot be read.*--skip-bad-boxes leaves the faulty ones out"):
        open_checked(source, "train")
    dataset = open_checked(source, "train", skip_bad_boxes=True, workers=1)
    assert [(dataset.name(index), dataset[index].boxes.tolist()) for index in range(len(dataset))] == [
        ("good.jpg", [[10, 20, 40, 40]])
    ]
    assert open_checked("shapes", "val", seed=3)[0].image.tolist() == Shapes("val", seed=3)[0].image.tolist()


def test_a_data_set_without_usable_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    source = write_coco_folder(tmp_path, [image_entry(1, "text.jpg")], [])
    dataset = open_dataset(source, "train", skip_bad_boxes=True)
    with pytest.raises(ValueError, match="split train has no image that can be read"):
        check_before_training([dataset], workers=1)
    with pytest.raises(ValueError, match="split train has no image that can be used"):
        open_dataset(write_coco_folder(tmp_path, [image_entry(1, "missing.jpg")], []), "train", skip_bad_boxes=True)


def test_mislabelled_and_duplicate_images_cause_warnings(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", colour="blue")
    write_image(tmp_path / "b.jpg", kind="PNG")
    (tmp_path / "c.png").write_bytes((tmp_path / "b.jpg").read_bytes())
    images = [image_entry(1, "a.jpg"), image_entry(2, "b.jpg"), image_entry(3, "c.png")]
    source = write_coco_folder(tmp_path, images, [annotation_entry(1, 1)])
    write_coco_folder(tmp_path, [image_entry(9, "a.jpg")], [annotation_entry(1, 9)], split="val")
    faults = check_before_training([open_dataset(source, split) for split in ("train", "val")], workers=2)
    assert all(fault.warning for fault in faults)
    assert [fault.what for fault in faults] == [
        "b.jpg holds a PNG image",
        f"c.png has the same bytes as {tmp_path / 'b.jpg'} (split train)",
        "split val shares images with split train: 1 in total, the first is a.jpg",
    ]


def test_damaged_images_cause_warnings_and_stay_in_the_data_set(tmp_path: Path) -> None:
    write_image(tmp_path / "whole.jpg")
    write_image(tmp_path / "cut.jpg", colour="blue")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[:-20] + b"\xff\xd9")
    write_image(tmp_path / "checksum.png", kind="PNG")
    data = (tmp_path / "checksum.png").read_bytes()
    (tmp_path / "checksum.png").write_bytes(data[:-13] + bytes([data[-13] ^ 1]) + data[-12:])  # 12 bytes of IEND
    images = [image_entry(place, name) for place, name in enumerate(["whole.jpg", "cut.jpg", "checksum.png"])]
    dataset = open_dataset(write_coco_folder(tmp_path, images, [annotation_entry(1, 0)]), "train")
    faults = check_before_training([dataset], workers=2)
    assert [(fault.kind, fault.warning) for fault in faults] == [("damaged image", True)] * 2
    cut, checksum = map(str, faults)
    assert "train.json:3:1: warning: cut.jpg is damaged: the JPEG data is damaged or ends early" in cut
    assert "train.json:4:1: warning: checksum.png is damaged: a checksum of the PNG file" in checksum
    assert "replace it with the original file" in cut
    assert summary(faults) == "2 × damaged image"
    assert len(dataset) == 3


@real
def test_every_hostile_image_that_passes_the_check_can_be_read(tmp_path: Path) -> None:
    files = [file for file in sorted(ABUSE.rglob("*")) if file.is_file() and file.stat().st_size < 200_000][::5]
    for place, file in enumerate(files):
        (tmp_path / f"{place}.jpg").symlink_to(file)
    images = [image_entry(place, f"{place}.jpg") for place in range(len(files))]
    dataset = open_folder(write_coco_folder(tmp_path, images, []), "train")
    faults = check_images(dataset, workers=2)
    assert len(files) > 50
    left_out = sum(not fault.warning for fault in faults)
    assert len(dataset) + left_out == len(files)
    assert left_out > 20
    assert all(dataset[index].image.shape == (60, 100, 3) for index in range(len(dataset)))
