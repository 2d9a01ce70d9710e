"""The splits of a training run: faults that stop it before the first iteration, and faults that are only reported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from faster_rcnn.data.image_record import changes
from faster_rcnn.data.shapes import Shapes, write_coco
from faster_rcnn.training.run import RunRecord, begin_run
from faster_rcnn.training.splits import SHAPES_WITH_PROPOSALS, check_same_images, open_splits


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    for split in ("train", "val"):
        write_coco(Shapes(split, 3), tmp_path)
    return begin_run(tmp_path / "run", {"data": f"coco:{tmp_path}", "batch_size": 2, "iterations": 1}, "", "cpu")


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_record_gets_digests_that_are_compared_when_the_run_is_resumed(record: RunRecord, tmp_path: Path) -> None:
    training, validation, opened = open_splits(record)
    assert (len(training), len(validation)) == (3, 3)
    assert opened.annotations_sha256 is not None
    assert [len(digest or "") for digest in opened.annotations_sha256] == [64, 64]
    assert open_splits(opened)[2] == opened
    file = tmp_path / "annotations" / "train.json"
    document = json.loads(file.read_text())
    change(file, annotations=document["annotations"][:-1])
    with pytest.raises(ValueError, match="are not those that the run began with; restore them, or start a new run"):
        open_splits(opened)
    document["annotations"][-1]["category_id"] = 99
    document["categories"].append({"id": 99, "name": "another"})
    change(file, annotations=document["annotations"], categories=document["categories"])
    with pytest.raises(ValueError, match="the data has classes that the run does not know: another"):
        open_splits(opened)


@pytest.mark.contract("6.14")
def test_a_replaced_image_is_noticed_when_the_run_is_resumed(
    record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    splits = open_splits(record)[:2]
    check_same_images(splits, folder, accept_changes=False)
    check_same_images(open_splits(record)[:2], folder, accept_changes=False)
    for name in ("000000.png", "000001.png"):
        file = tmp_path / "train" / name
        Image.new("RGB", Image.open(file).size).save(file)
    replaced = open_splits(record)[:2]
    with pytest.raises(ValueError, match=r"since the run began, 2 images are changed: train/000000.png \(train\), "):
        check_same_images(replaced, folder, accept_changes=False)
    check_same_images(replaced, folder, accept_changes=True)
    assert "2 images are changed" in capsys.readouterr().out
    check_same_images(replaced, folder, accept_changes=False)  # the record is now that of the new images
    (folder / "images.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"images.jsonl is damaged; delete it"):
        check_same_images(replaced, folder, accept_changes=False)


def test_missing_and_new_images_are_counted_with_the_first_names() -> None:
    before = {("train", f"{number}.png"): (4, 4, "digest") for number in range(6)}
    now = {("train", "9.png"): (4, 4, "digest")}
    assert changes(before, before) == ""
    assert changes(before, now) == (
        "6 images are missing: 0.png (train), 1.png (train), 2.png (train) and 3 more; 1 images are new: 9.png (train)"
    )


def test_validation_may_list_the_classes_in_another_order(record: RunRecord, tmp_path: Path) -> None:
    _, before, _ = open_splits(record)
    file = tmp_path / "annotations" / "val.json"
    document = json.loads(file.read_text())
    highest = max(category["id"] for category in document["categories"])
    for category in document["categories"]:
        category["id"] = highest - category["id"]
    for annotation in document["annotations"]:
        annotation["category_id"] = highest - annotation["category_id"]
    change(file, **document)
    training, validation, _ = open_splits(record)
    assert validation.labels == training.labels
    assert [validation[index].labels.tolist() for index in range(3)] == [
        before[index].labels.tolist() for index in range(3)
    ]


def test_a_training_split_without_objects_is_refused(record: RunRecord, tmp_path: Path) -> None:
    change(tmp_path / "annotations" / "train.json", annotations=[])
    with pytest.raises(ValueError, match="/train has no objects to learn from; add annotations"):
        open_splits(record)


def test_a_validation_split_without_objects_is_reported(
    record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(tmp_path / "annotations" / "val.json", annotations=[])
    open_splits(record)
    assert "/val has no objects, so no best checkpoint can be chosen" in capsys.readouterr().out


def test_a_broken_image_stops_the_run_or_is_left_out(
    record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train" / "000002.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"000002\.png.*--skip-bad-boxes"):
        open_splits(record)
    training, _, _ = open_splits(replace(record, skip_bad_boxes=True))
    assert len(training) == 2
    printed = capsys.readouterr().out
    assert f"faulty data is left out; faster-rcnn check --data coco:{tmp_path} lists all" in printed


def test_damaged_images_are_counted_and_used(
    record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train" / "000002.png"
    file.write_bytes(file.read_bytes()[:-12])  # without IEND
    assert len(open_splits(record)[0]) == 3
    assert (
        "the data has 1 × damaged image; none of them prevents training; faster-rcnn check" in capsys.readouterr().out
    )


def test_only_schedules_that_make_proposals_beforehand_limit_generated_images(tmp_path: Path) -> None:
    options = {"data": "shapes", "batch_size": 2, "iterations": 4}
    joint = begin_run(tmp_path, options, "", "cpu")
    alternating = begin_run(tmp_path, options | {"schedule": "alternating"}, "", "cpu")
    assert len(open_splits(joint)[0]) > SHAPES_WITH_PROPOSALS
    training, _, opened = open_splits(alternating)
    assert len(training) == SHAPES_WITH_PROPOSALS
    assert opened.annotations_sha256 == (None, None)
