"""YOLO: descriptions as people write them, label lines, and their faults."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from faster_rcnn.data.decode_check import check_before_training
from faster_rcnn.data.layouts.yolo_labels import Classes, read_labels
from faster_rcnn.data.sources import open_dataset, open_folder, splits_of
from tests.faster_rcnn.data.layouts.layout_writers import Photo, text, write_photo

LINE = "0 0.5 0.5 0.5 0.25"  # in an image of 40×80: the box 10, 30, 30, 50


def write(root: Path, config: str, label: str = LINE, image: str = "images/train/a.jpg") -> str:
    write_photo(root / image, Photo(image, 40, 80, ()))
    text((root / image.replace("images", "labels")).with_suffix(".txt"), label)
    text(root / "data.yaml", config)
    return str(root)


@pytest.mark.parametrize(
    "config",
    [
        "train: images/train\nnames: [dog]",
        "train: [images/train]\nnames: {0: dog}",
        "train:\n  - images/train\nnames:\n  '0': dog\n",
        "train: images/train/a.jpg\nnames: [dog]",
        "train: images\nnames: [dog]",
        "path: /home/me/datasets/pets\ntrain: images/train\nval:\ntest: # none\nnames: [dog]",
        "path: C:\\data\ntrain: images\\train\nnames: [dog]",
        "train: /content/pets/images/train\nnames: [dog]",
        "\ufefftrain: images/train\nnc: 1\nnames: ['dog']\ndownload: |\n  import os\n  os.remove('x')\n",
        "train: ../images/train\nnames: ['dog']",
    ],
)
def test_spellings_of_a_description(tmp_path: Path, config: str) -> None:
    source = write(tmp_path, config)
    dataset = open_dataset(source, "train")
    assert dataset.labels == ("dog",)
    assert dataset[0].boxes.tolist() == [[10, 30, 30, 50]]
    assert splits_of(source) == ["train"]


@pytest.mark.parametrize("test", ["../test/images", "test/images", "[test/images, more/test]"])
def test_a_split_for_tests_that_was_not_exported_is_left_out_with_a_warning(tmp_path: Path, test: str) -> None:
    source = write(tmp_path, f"train: images/train\ntest: {test}\nnames: [dog]")
    assert splits_of(source) == ["train"]
    (warning,) = open_folder(source, "train").faults
    assert warning.warning
    assert "which is not there, so the data has no split test; add the folder, or remove the line" in str(warning)
    with pytest.raises(FileNotFoundError, match=r"has no split test \(splits found: train\)"):
        open_dataset(source, "test")


def test_a_split_for_validation_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Without it, training would validate on other images than the description says."""
    source = write(tmp_path, "train: images/train\nval: ../valid/images\ntest: ../test/images\nnames: [dog]")
    assert splits_of(source) == ["train", "val"]
    with pytest.raises(ValueError, match=r"its val is '../valid/images', which is not there"):
        open_dataset(source, "val")


@pytest.mark.parametrize("config", ["train: images/train\nnames: [dog, cat\n", "train: images/train\n\tnames: [dog]\n"])
def test_a_description_that_is_not_yaml_is_named_with_the_line(tmp_path: Path, config: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"Nearest: YOLO, but data.yaml is not YAML: see line [23]"):
        open_dataset(write(tmp_path, config), "train")


def test_class_names_stay_text_and_their_numbers_may_have_gaps(tmp_path: Path) -> None:
    """YAML 1.1 reads `no`, `on`, `1` and `~` as other things than text."""
    source = write(tmp_path, "train: images/train\nnames: {7: no, 2: 1, 11: on, 3: '~'}", "11 0.5 0.5 0.5 0.5")
    dataset = open_dataset(source, "train")
    assert dataset.labels == ("1", "~", "no", "on")
    assert dataset[0].labels.tolist() == [3]


def test_classes_without_names_are_numbered_with_a_warning(tmp_path: Path) -> None:
    dataset = open_folder(write(tmp_path, "train: images/train\nnc: 2"), "train")
    assert dataset.labels == ("class_0", "class_1")
    assert [fault.kind for fault in dataset.faults] == ["classes without names"]


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("train: images/train\nnames: dog", "its names are 'dog'; write a list of class names"),
        ("train: images/train\nnames: {dog: 0}", "write a list of class names, or number: name"),
        ("train: images/train\nnames: []", "give every class a name"),
        ("train: images/train\nnames: [dog, '']", "give every class a name"),
        ("train: images/train\nnames: [dog, dog]", "its names have dog more than once; rename one"),
        (
            "train: images/none\nnames: [dog]",
            r"its train is 'images/none', which is not there; correct .*Found: data.yaml",
        ),
        ("train: {a: b}\nnames: [dog]", "its train is {'a': 'b'}; write the path"),
        ("train:\nnames: [dog]", "names no images; add train: and val:"),
        (
            "a: &a [x, x]\nb: &b [*a, *a]\ntrain: images/train\nnames: [*b]",
            "write a list of class names, or number: name",
        ),
        ("train: images/train\nnc: many", "its names are None; write a list of class names"),
        ("train: images/train\nnc: " + "9" * 5000, "its names are None; write a list of class names"),
        ("train: [images/train\nnames: [dog]", "YOLO, but data.yaml is not YAML: see line 2, column 6; correct it"),
        ("train: " + "[" * 2000, "YOLO, but data.yaml is not YAML; correct it"),
    ],
)
def test_a_faulty_description_is_refused_in_one_line(tmp_path: Path, config: str, complaint: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=complaint) as refusal:
        open_dataset(write(tmp_path, config), "train")
    assert "\n" not in str(refusal.value)


def test_a_split_that_is_not_there_is_not_replaced_by_a_folder_of_all_images(tmp_path: Path) -> None:
    """`../valid/images` ends in `images`, a folder that exists; but its images are those of no split."""
    source = write(tmp_path, "train: ../train/images\nval: ../valid/images\nnames: [dog]", image="images/a.jpg")
    for split in ("train", "val"):
        with pytest.raises(ValueError, match="which is not there"):
            open_dataset(source, split)


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.5 0.5 0.5 0.25", [10, 30, 30, 50]),
        ("0\t0.5   0.5 0.5 0.25 ", [10, 30, 30, 50]),
        ("0 5e-1 .5 0.5 0.25", [10, 30, 30, 50]),
        ("0.0 0.5 0.5 0.5 0.25", [10, 30, 30, 50]),  # numpy's savetxt writes 0.000000 for the class
        ("0 0.25 0.5 0.75 0.5 0.5 0.75", [10, 40, 30, 60]),  # a triangle: x 10, 30, 20; y 40, 40, 60
        ("0 0.25 0.25 0.5 0.125 0.75 0.25 0.5 0.5", [10, 10, 30, 40]),  # an oriented box: x 10 … 30, y 10 … 40
    ],
)
def test_a_line_is_a_box_or_corners(tmp_path: Path, line: str, box: list[float]) -> None:
    text(tmp_path / "a.txt", line)
    objects, faults = read_labels(tmp_path / "a.txt", (40, 80), Classes({0: 0}, ("dog",)))
    assert faults == []
    assert [list(one.box) for one in objects] == [box]


def test_key_points_are_not_corners(tmp_path: Path) -> None:
    text(tmp_path / "a.txt", "0 0.5 0.5 0.5 0.25 0.1 0.1 2 0.9 0.9 2")
    objects, _ = read_labels(tmp_path / "a.txt", (40, 80), Classes({0: 0}, ("dog",), keypoints=True))
    assert [one.box for one in objects] == [(10, 30, 30, 50)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 0.5 0.5 0.5", "it has 4 numbers, not 5 of a box"),
        ("0 0.5 0.5 0.5 0.5 0.9", "it has 6 numbers, .*; a sixth number may be a confidence"),
        ("0 0.5 0.5 0.5 0.25 0.9", "it has 6 numbers"),
        ("0 20 40 20 20", "has a number outside 0 to 1; give shares of the image, not pixels"),
        ("0 0.5 0.5 -0.5 0.25", "outside 0 to 1"),
        ("dog 0.5 0.5 0.5 0.25", "is not a class number and shares"),
        ("0,0.5,0.5,0.5,0.25", "is not a class number and shares"),
        ("0 nan 0.5 0.5 0.25", "is not a class number and shares"),
        ("1 0.5 0.5 0.5 0.25", "class 1 is not one of the 1 that are named"),
        ("0.5 0.5 0.5 0.5 0.25", "class 0.5 is not one of the 1"),
        ("0 0.5 0.5 0 0.25", "has no area"),
        (LINE, "equals the box of"),
    ],
)
def test_a_faulty_line_is_reported_with_its_number(tmp_path: Path, line: str, complaint: str) -> None:
    source = write(tmp_path, "train: images/train\nnames: [dog]", f"{LINE}\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.txt:3: .*{complaint}"):
        open_dataset(source, "train")
    assert open_dataset(source, "train", skip_bad_boxes=True)[0].boxes.tolist() == [[10, 30, 30, 50]]


def test_images_that_are_missing_or_broken_and_splits_without_labels(tmp_path: Path) -> None:
    source = write(tmp_path, "train: train.txt\nval: images/val\nnames: [dog]")
    text(tmp_path / "train.txt", "./images/train/a.jpg\n\nimages/train/gone.jpg\nimages/train/broken.jpg\n")
    text(tmp_path / "images/train/broken.jpg", "no image")
    write_photo(tmp_path / "images/val/b.jpg", Photo("b", 30, 30, ()))
    faults = open_folder(source, "train").faults
    assert [fault.kind for fault in faults] == ["unreadable image", "image without annotations", "missing image"]
    with pytest.raises(ValueError, match=r"none of the 1 images of split val has a label file; .*b.jpg needs .*b.txt"):
        open_folder(source, "val")
    text(tmp_path / "labels/val/b.txt", "")  # an empty file means no objects
    assert open_dataset(source, "val")[0].boxes.shape == (0, 4)


def test_the_size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    source = write(tmp_path, "train: images/train\nnames: [dog]")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: 80×40 stored is 40×80 upright
    Image.new("RGB", (80, 40)).save(tmp_path / "images/train/a.jpg", exif=exif)
    sample = open_dataset(source, "train")[0]
    assert sample.image.shape == (80, 40, 3)
    assert sample.boxes.tolist() == [[10, 30, 30, 50]]


def test_several_descriptions_have_to_be_named(tmp_path: Path) -> None:
    write(tmp_path, "train: images/train\nnames: [dog]")
    (tmp_path / "data.yaml").rename(tmp_path / "a.yaml")
    text(tmp_path / "b.yaml", "train: images/train\nnames: [cat]")
    with pytest.raises(ValueError, match=r"several descriptions of YOLO data, a.yaml, b.yaml; name one"):
        open_dataset(str(tmp_path), "train")
    assert open_dataset(str(tmp_path / "b.yaml"), "train").labels == ("cat",)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(["0", "1", "0.5", "-1", "1.005", "nan", "1e400", "٣", "", "x"]), max_size=8)))
def test_any_label_file_is_either_reported_as_faulty_or_has_valid_boxes(tmp_path: Path, rows: list[list[str]]) -> None:
    label = "\n".join([LINE, *map(" ".join, rows)])
    source = write(tmp_path, "train: images/train\nnames: [dog]", label)
    dataset = open_dataset(source, "train", skip_bad_boxes=True)
    check_before_training([dataset], workers=1)
    boxes = dataset[0].boxes
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [40, 80]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
