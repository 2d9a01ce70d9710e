"""The clean copy of a data set: reading it back gives the same boxes and no faults, whatever was wrong before."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image

from faster_rcnn.commands.check import main
from faster_rcnn.data.coco_writer import CocoWriter, file_name
from faster_rcnn.data.decode_check import check_images
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.sources import open_folder
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder, write_image

coordinate = st.floats(-20, 120, width=32) | st.integers(-20, 120).map(float) | st.floats(-1e300, 1e300)
boxes = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=12)


def written(source: str, folder: Path, split: str = "train") -> FolderDataset:
    """Writes a split to `folder`; returns what was written, as it was read first."""
    dataset = open_folder(source, split, skip_bad_boxes=True)
    check_images(dataset, 1)
    with CocoWriter(folder) as writer:
        writer.add(dataset)
        writer.publish()
    return dataset


def same_objects(one: FolderDataset, other: FolderDataset) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(mine, theirs)
        for index in range(len(one))
        for mine, theirs in zip(one.all_objects(index), other.all_objects(index), strict=True)
    )


@pytest.mark.contract("6.12")
@settings(max_examples=60, deadline=None)
@given(boxes, st.booleans(), st.sampled_from(["a.jpg", "deep/a.png", "a b:c?.JPG", "ä.jpeg", "a.jpg.jpg", "..a.txt"]))
def test_reading_the_copy_gives_the_same_boxes_and_no_faults(
    found: list[tuple[float, ...]], crowd: bool, name: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_image(folder / name)
        objects = [annotation_entry(number, 1, box) | {"iscrowd": int(crowd)} for number, box in enumerate(found)]
        source = write_coco_folder(folder, [image_entry(1, name), image_entry(2, "missing.jpg")], objects)
        try:
            before = written(source, folder / "clean")
            after = open_folder(f"coco:{folder / 'clean'}", "train")
        except ValueError as refusal:  # reading refuses all boxes if they look like another notation
            if "fractions of their images" in str(refusal) or "fit as corners" in str(refusal):
                reject()
            raise
        assert [*after.faults, *check_images(after, 1)] == []
        assert same_objects(before, after)
        assert after.labels == before.labels


@pytest.mark.contract("6.12")
def test_the_command_writes_all_splits_without_their_faults_and_touches_no_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, clean = tmp_path / "data", tmp_path / "clean"
    write_image(data / "a.jpg")
    write_image(data / "b.jpg", colour="blue", kind="PNG")
    (data / "broken.jpg").write_bytes(b"no image")
    write_image(data / "c.jpg", colour="green")
    images = [image_entry(1, "a.jpg"), image_entry(2, "b.jpg"), image_entry(3, "broken.jpg")]
    boxes = [(10, 20, 30, 20), (90, 50, 11, 11), (10, 20, 0, 20)]  # the second is clipped, the third has no area
    source = write_coco_folder(data, images, [annotation_entry(number, 1, box) for number, box in enumerate(boxes)])
    write_coco_folder(data, [image_entry(7, "c.jpg")], [annotation_entry(1, 7)], split="val")
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(data.rglob("*")) if file.is_file()}
    assert main(["--data", source, "--write", f"coco:{clean}", "--workers", "1"]) == 0
    assert (
        f"wrote coco:{clean}: train (2 images, 2 objects), val (1 images, 1 objects); 1 images have another name"
        in (capsys.readouterr().out)
    )
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before
    assert sorted(file.relative_to(clean).as_posix() for file in clean.rglob("*") if file.is_file()) == [
        "annotations/train.json",
        "annotations/val.json",
        "images/train/a.jpg",
        "images/train/b.png",
        "images/val/c.jpg",
    ]
    assert (clean / "images" / "train" / "a.jpg").samefile(data / "a.jpg")  # a hard link
    assert open_folder(f"coco:{clean}", "train").objects(0)[0].tolist() == [[10, 20, 40, 40], [90, 50, 100, 60]]
    assert main(["--data", f"coco:{clean}", "--workers", "1"]) == 0
    assert capsys.readouterr().out.count("faults: none") == 2


def test_boxes_of_a_turned_image_are_written_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 60)).save(tmp_path / "a.png", exif=exif)
    source = write_coco_folder(tmp_path, [image_entry(1, "a.png")], [annotation_entry(1, 1)])
    arguments = ["--data", source, "--exif-boxes", "stored", "--write", f"coco:{tmp_path / 'clean'}"]
    assert main(arguments) == 0
    after = open_folder(f"coco:{tmp_path / 'clean'}", "train")
    assert check_images(after, 1) == []
    # The stored image is 100 × 60, and its box is 10, 20 to 40, 40: x from 60 - 40 to 60 - 20, y from 10 to 40.
    assert (after.size(0), after.objects(0)[0].tolist()) == ((100, 60), [[20, 10, 40, 40]])


@pytest.mark.contract("6.12")
def test_nothing_is_written_to_a_folder_that_is_not_empty_or_from_data_with_serious_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.jpg")
    source = write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], [], names=("dog", "dog"))
    assert main(["--data", source, "--write", f"coco:{tmp_path / 'clean'}"]) == 1
    assert not any("clean" in file.name for file in tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert main(["--data", source, "--write", f"coco:{tmp_path / 'full'}"]) == 1
    assert f"{tmp_path / 'full'} exists and is not empty; name a new folder" in capsys.readouterr().err
    assert main(["--data", source, "--write", f"coco:{tmp_path / 'clean'}", "--no-decode"]) == 1
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_names_differ_even_where_case_does_not_count() -> None:
    taken: set[str] = set()
    names = [file_name(name, "JPEG", taken) for name in ("a.jpg", "A.JPG", "x/a.jpg", "a.png", "a", "con|.jpg", "..")]
    assert names == ["a.jpg", "A-2.JPG", "x_a.jpg", "a-3.jpg", "a-4.jpg", "con_.jpg", "image.jpg"]
    assert len(file_name("ü" * 300, "PNG", taken)) == 154


def test_difficult_objects_stay_difficult(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    entry = annotation_entry(1, 1) | {"difficult": 1}
    written(write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], [entry]), tmp_path / "clean")
    assert open_folder(f"coco:{tmp_path / 'clean'}", "train").not_trained_on() == (0, 1)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.tif", "TIFF", "a.tif"),
        ("a.avif", "AVIF", "a.avif"),
        ("a.HEIC", "HEIF", "a.HEIC"),
        ("a.jpg", "HEIF", "a.heic"),
        ("a.tif", "PNG", "a.png"),
    ],
)
def test_every_format_that_is_read_keeps_a_right_extension_and_loses_a_wrong_one(
    name: str, kind: str, expected: str
) -> None:
    assert file_name(name, kind, set()) == expected
