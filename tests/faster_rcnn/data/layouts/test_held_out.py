"""Data without a validation split: a share of its images is held out."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faster_rcnn.data.annotations import AnnotatedImage, ParsedSplit
from faster_rcnn.data.decode_check import check_before_training
from faster_rcnn.data.layouts.held_out import divide
from faster_rcnn.data.sources import open_dataset, open_folder, share_to_hold_out, splits_of
from tests.faster_rcnn.data.layouts import layout_writers as writers
from tests.faster_rcnn.data.layouts.layout_writers import Object, Photo, write_photo


def whole(names: list[str]) -> ParsedSplit:
    return ParsedSplit("coco:x", "all", ("dog",), [AnnotatedImage(name, Path(name), 9, 9, "x") for name in names], [])


def names(part: ParsedSplit) -> set[str]:
    return {image.name for image in part.images}


file_names = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=40, unique_by=str.casefold).map(
    lambda found: [f"{name.replace('/', '_').replace('.', '_')}{place}.jpg" for place, name in enumerate(found)]
)


@given(file_names, st.floats(0.01, 0.99), st.randoms())
def test_the_parts_are_not_empty_and_do_not_depend_on_the_order(
    names_: list[str], share: float, random: object
) -> None:
    train, val = divide(whole(names_), share)
    assert names(train) | names(val) == set(names_)
    assert not names(train) & names(val)
    assert names(train)
    assert names(val)
    again, _ = divide(whole(list(reversed(names_))), share)
    assert names(again) == names(train)


def test_an_image_stays_in_its_part_when_others_are_added_and_the_share_is_kept() -> None:
    first = [f"frame {number}.jpg" for number in range(200)]
    train, val = divide(whole(first), 0.2)
    more_train, more_val = divide(whole(first + [f"later {number}.jpg" for number in range(1800)]), 0.2)
    assert names(train) <= names(more_train)
    assert names(val) <= names(more_val)
    # 2,000 draws with probability 0.2: mean 400, deviation sqrt(2000 · 0.2 · 0.8) = 17.9
    assert abs(len(more_val.images) - 400) < 4 * 17.9


def test_what_roboflow_made_from_one_original_stays_together() -> None:
    made = [f"photo{number}_jpg.rf.{copy * 31:032x}.jpg" for number in range(30) for copy in range(3)]
    train, val = divide(whole(made), 0.3)
    originals = [{name.partition(".rf.")[0] for name in names(part)} for part in (train, val)]
    assert not originals[0] & originals[1]
    assert len(train.images) % 3 == len(val.images) % 3 == 0


def test_one_image_cannot_be_divided() -> None:
    for made in (["a.jpg"], ["a_jpg.rf.1.jpg", "a_jpg.rf.2.jpg"]):
        with pytest.raises(
            ValueError, match=r"of 1 originals, which cannot be divided into train and val; .*--split all"
        ):
            divide(whole(made), 0.2)


PHOTOS = [Photo(f"{number}.jpg", 40 + number, 40, (Object("dog", 1, 2, 30, 40),)) for number in range(20)]


@pytest.mark.contract("6.3")
def test_a_set_without_splits_is_divided_and_said_once_with_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(writers.flat_voc(tmp_path, {"train": PHOTOS}))
    assert splits_of(source) == ["train", "val"]
    train, val = open_dataset(source, "train"), open_dataset(source, "valid")
    assert len(train) + len(val) == 20
    assert len(open_dataset(source, "all")) == 20
    share = f"{len(val) / 20:.1%}"
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        f"{source}: the data has no splits; by their file names, {len(train)} of 20 images are train and {len(val)} "
        f"are val ({share}; --val-share 0.2); --split all is every image"
    ]
    assert len(open_dataset(source, "val", val_share=0.7)) > len(val)
    with pytest.raises(FileNotFoundError, match=r"has no split test \(splits found: all\)"):
        open_dataset(source, "test")


def test_a_split_for_training_alone_is_divided_only_on_request(tmp_path: Path) -> None:
    source = str(writers.roboflow_coco(tmp_path, {"train": PHOTOS, "test": [Photo("t.jpg", 30, 30, ())]}))
    assert len(open_dataset(source, "train")) == 20
    with pytest.raises(FileNotFoundError, match=r"no split val \(.*: test, train\); --val-share 0.2 holds out"):
        open_dataset(source, "val")
    assert splits_of(source) == ["test", "train"]
    assert splits_of(source, 0.2) == ["train", "val", "test"]
    parts = [open_dataset(source, split, val_share=0.2) for split in ("train", "val")]
    assert sum(map(len, parts)) == 20
    assert min(map(len, parts)) > 0
    assert len(open_dataset(source, "test", val_share=0.2)) == 1
    # training asks for the default share itself, and records it
    assert share_to_hold_out(source, "train", "val", None) == 0.2
    assert share_to_hold_out(source, "train", "test", None) is None


def test_data_with_a_validation_split_is_not_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(writers.roboflow_coco(tmp_path, {"train": PHOTOS[:9], "val": PHOTOS[9:]}))
    assert share_to_hold_out(source, "train", "val", None) is None
    assert len(open_dataset(source, "train", val_share=0.5)) == 9
    assert "--val-share 0.5 has no effect, because the data has a split for validation" in capsys.readouterr().out


def test_images_in_both_splits_are_warned_about(tmp_path: Path) -> None:
    """A data.yaml that names one folder twice, and two names for one file in a set that is divided."""
    writers.ultralytics(tmp_path / "yolo", {"train": PHOTOS[:5]})
    config = (tmp_path / "yolo" / "coco8.yaml").read_text() + "val: images/train\n"
    writers.text(tmp_path / "yolo" / "coco8.yaml", config)
    splits = [open_dataset(str(tmp_path / "yolo"), split) for split in ("train", "val")]
    faults = [fault for fault in check_before_training(splits, 1) if fault.kind == "splits share images"]
    assert [fault.what.partition(":")[2] for fault in faults] == [" 5 in total, the first is 0.jpg"]
    copies = [Photo(f"copy {number}.jpg", 40, 40, ()) for number in range(20)]
    writers.text(tmp_path / "coco" / "all.json", json.dumps(writers.coco([*PHOTOS[:1], *copies], ["dog"])))
    for photo in [*PHOTOS[:1], *copies]:
        write_photo(tmp_path / "coco" / photo.name, Photo(PHOTOS[0].name, 40, 40, ()))
    splits = [open_dataset(str(tmp_path / "coco"), split) for split in ("train", "val")]
    kinds = {fault.kind for fault in check_before_training(splits, 1)}
    assert kinds == {"duplicate image"}


def test_every_path_to_the_data_divides_it_alike(tmp_path: Path) -> None:
    first = writers.flat_voc(tmp_path / "a", {"train": PHOTOS})
    (tmp_path / "b").mkdir()
    moved = first.rename(tmp_path / "b" / "data")
    chosen = [open_folder(str(place), "val") for place in (moved, f"voc:{moved}")]
    assert len({tuple(one.name(index) for index in range(len(one))) for one in chosen}) == 1
