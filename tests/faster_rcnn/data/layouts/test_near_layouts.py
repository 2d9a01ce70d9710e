"""Data sets that are nearly in a known layout: what is still read, and what the message says about the others."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from faster_rcnn.data.layouts.image_finder import spellings
from faster_rcnn.data.sources import open_dataset, open_folder, splits_of
from tests.faster_rcnn.data.layouts import layout_writers as writers
from tests.faster_rcnn.data.layouts.layout_writers import Object, Photo, Splits, text, write_photo

DOG = Photo("dog 1.jpg", 60, 40, (Object("dog", 10, 20, 40, 40),))
CAT = Photo("cat.jpg", 50, 50, (Object("cat", 1, 2, 30, 40),))
BIRD = Photo("bird.jpg", 64, 30, (Object("bird", 3, 4, 50, 20),))
SPLITS: Splits = {"train": [DOG, BIRD], "val": [CAT]}


def boxes(source: object, split: str) -> list[list[float]]:
    dataset = open_dataset(str(source), split)
    return [box for index in range(len(dataset)) for box in dataset[index].boxes.round(2).tolist()]


def warnings(source: object, split: str) -> list[str]:
    return [fault.kind for fault in open_folder(str(source), split).faults]


def test_images_in_a_sibling_folder_or_by_another_order_of_folders(tmp_path: Path) -> None:
    """`annotations/train.json` with `train/images` instead of `images/train`."""
    writers.cvat_coco(tmp_path, SPLITS)
    for split in SPLITS:
        (tmp_path / split).mkdir()
        (tmp_path / "images" / split).rename(tmp_path / split / "images")
    assert boxes(tmp_path, "train") == [[10, 20, 40, 40], [3, 4, 50, 20]]
    assert boxes(tmp_path, "val") == [[1, 2, 30, 40]]


def test_labels_beside_the_folder_of_images_of_each_split(tmp_path: Path) -> None:
    """`train/images` and `labels/train`, which nothing but the names of the files connects."""
    writers.ultralytics(tmp_path, SPLITS)
    for split in SPLITS:
        (tmp_path / split).mkdir()
        (tmp_path / "images" / split).rename(tmp_path / split / "images")
    config = (tmp_path / "coco8.yaml").read_text().replace("images/train", "train/images")
    text(tmp_path / "coco8.yaml", config.replace("images/val", "val/images"))
    assert boxes(tmp_path, "train") == [[3, 4, 50, 20], [10, 20, 40, 40]]
    assert boxes(tmp_path, "val") == [[1, 2, 30, 40]]


def test_names_in_another_case_or_unicode_form_are_found_and_counted(tmp_path: Path) -> None:
    photos = [Photo("Hände.JPG", 60, 40, DOG.objects), Photo("b.jpg", 60, 50, ())]
    text(tmp_path / "all.json", json.dumps(writers.coco(photos, ["dog"])))
    write_photo(tmp_path / "photos" / unicodedata.normalize("NFD", "hände.jpg"), photos[0])
    write_photo(tmp_path / "photos" / "b.jpg", photos[1])
    assert boxes(tmp_path, "all") == [[10, 20, 40, 40]]
    (found,) = [fault for fault in open_folder(str(tmp_path), "all").faults if fault.kind == "image found elsewhere"]
    assert "1 of 2 images were found only by the end of their names; the first is Hände.JPG" in found.what


@pytest.mark.parametrize(
    ("written", "stands_for"),
    [
        ("C:\\Users\\me\\photos\\a.jpg", "C:/Users/me/photos/a.jpg"),
        ("/home/me/photos/a.jpg", "home/me/photos/a.jpg"),
        ("/data/upload/1/0a1b2c3d-a.jpg", "data/upload/1/a.jpg"),
        ("/data/local-files/?d=my%20photos/a.jpg", "my photos/a.jpg"),
        ("https://example.org/photos/a%20b.jpg?size=2", "photos/a b.jpg"),
        ("s3://bucket/photos/a.jpg", "photos/a.jpg"),
        ("images\\0a1b2c3d-a.jpg", "images/a.jpg"),
        ("a%20b.jpg", "a b.jpg"),
        ("100%.jpg", "100%.jpg"),
        ("../../a.jpg", "a.jpg"),
        ("http://[a.jpg", "http:/[a.jpg"),
    ],
)
def test_what_a_name_from_another_machine_stands_for(written: str, stands_for: str) -> None:
    assert stands_for in list(spellings(written))


def test_absolute_and_windows_paths_in_coco_are_found_by_their_end(tmp_path: Path) -> None:
    document = writers.coco([DOG, CAT], ["cat", "dog"])
    document["images"][0]["file_name"] = "D:\\work\\set\\photos\\dog%201.jpg"
    document["images"][1]["file_name"] = "/home/me/set/photos/cat.jpg"
    text(tmp_path / "export.json", json.dumps(document))
    for photo in (DOG, CAT):
        write_photo(tmp_path / "photos" / photo.name, photo)
    assert boxes(tmp_path, "all") == [[10, 20, 40, 40], [1, 2, 30, 40]]
    assert warnings(tmp_path, "all") == ["image found elsewhere"]


def test_the_image_of_another_split_is_never_taken(tmp_path: Path) -> None:
    """Both splits have a file `1.jpg`; that of val is missing."""
    splits: Splits = {"train": [Photo("1.jpg", 60, 40, DOG.objects)], "val": [Photo("1.jpg", 60, 40, CAT.objects)]}
    writers.roboflow_coco(tmp_path, splits)
    (tmp_path / "valid" / "1.jpg").unlink()
    assert boxes(tmp_path, "train") == [[10, 20, 40, 40]]
    with pytest.raises(ValueError, match=r"image file 1\.jpg not found"):
        open_dataset(str(tmp_path), "val")


def test_two_images_that_fit_equally_well_are_not_chosen_between(tmp_path: Path) -> None:
    text(tmp_path / "export.json", json.dumps(writers.coco([DOG], ["dog"])))
    for folder in ("a", "b"):
        write_photo(tmp_path / folder / DOG.name, DOG)
    with pytest.raises(ValueError, match=r"image file dog 1\.jpg not found"):
        open_dataset(str(tmp_path), "all")


@pytest.mark.parametrize("name", ["train", "Training", "TRAIN", "train2017", "train_set"])
def test_spellings_of_a_split(tmp_path: Path, name: str) -> None:
    writers.roboflow_voc(tmp_path, SPLITS)
    (tmp_path / "train").rename(tmp_path / name)
    assert boxes(tmp_path, "train") == [[3, 4, 50, 20], [10, 20, 40, 40]]
    assert boxes(tmp_path, name) == boxes(tmp_path, "train")
    assert boxes(tmp_path, "validation") == [[1, 2, 30, 40]]
    assert splits_of(str(tmp_path)) == ["train", "val"]


def test_two_splits_of_one_meaning_have_to_be_named(tmp_path: Path) -> None:
    writers.coco_as_downloaded(tmp_path, SPLITS)
    shutil.copy(tmp_path / "annotations/instances_train2017.json", tmp_path / "annotations/instances_train2014.json")
    with pytest.raises(ValueError, match="split train can mean train2014 or train2017; name one of them"):
        open_dataset(str(tmp_path), "train")
    assert boxes(tmp_path, "train2017") == [[10, 20, 40, 40], [3, 4, 50, 20]]
    assert splits_of(str(tmp_path)) == ["train2014", "train2017", "val"]


def test_upper_case_extensions(tmp_path: Path) -> None:
    for photo in (DOG, CAT):
        write_photo(tmp_path / f"{Path(photo.name).stem}.JPG", photo)
        text(tmp_path / f"{Path(photo.name).stem}.XML", writers.voc(photo))
    assert boxes(tmp_path, "all") == [[1, 2, 30, 40], [10, 20, 40, 40]]


def test_a_folder_in_a_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writers.roboflow_yolo(tmp_path / "export" / "my data", SPLITS)
    text(tmp_path / "README.txt", "read me")
    assert boxes(tmp_path, "val") == [[1, 2, 30, 40]]
    said = capsys.readouterr().out
    assert said == f"{tmp_path}: YOLO (export/my data/data.yaml); splits: train, val\n"


def test_images_without_annotations_are_counted(tmp_path: Path) -> None:
    writers.roboflow_voc(tmp_path / "voc", SPLITS)
    writers.roboflow_yolo(tmp_path / "yolo", SPLITS)
    for folder in ("voc/train", "yolo/train/images"):
        write_photo(tmp_path / folder / "new.jpg", Photo("new.jpg", 30, 30, ()))
    text(tmp_path / "yolo/train/labels/gone.txt", "0 0.5 0.5 0.1 0.1")
    (voc,) = open_folder(str(tmp_path / "voc"), "train").faults
    assert voc.warning
    assert "1 of 3 images have no XML file, and are left out; the first is train/new.jpg" in voc.what
    yolo, unused = open_folder(str(tmp_path / "yolo"), "train").faults
    assert "1 of 3 images have no label file, and count as images without objects; the first is new.jpg" in yolo.what
    assert "1 label files belong to no image; the first is gone.txt" in unused.what
    assert (len(open_folder(str(tmp_path / "voc"), "train")), len(open_folder(str(tmp_path / "yolo"), "train"))) == (
        2,
        3,
    )


def message(source: object, split: str = "train") -> str:
    with pytest.raises((ValueError, OSError)) as refusal:
        open_dataset(str(source), split)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.contract("6.3")
def test_where_nothing_fits_the_message_shows_what_was_looked_for_and_found(tmp_path: Path) -> None:
    writers.roboflow_yolo(tmp_path, SPLITS)
    (tmp_path / "data.yaml").unlink()
    said = message(tmp_path)
    assert "Found: train/ (2 .jpg, 2 .txt), valid/ (1 .jpg, 1 .txt)." in said
    assert "Nearest: YOLO, but data.yaml (or classes.txt) with the names of the classes is missing; add it." in said
    for looked_for in ("annotations/<split>.json", "_annotations.coco.json", "ImageSets/Main", "data.yaml", "obj.data"):
        assert looked_for in said


@pytest.mark.parametrize(
    ("files", "nearest"),
    [
        ({}, "Found: no files."),
        ({"a.jpg": "", "b.jpg": ""}, "it holds 2 images without annotations"),
        ({"annotations/captions_train2017.json": '{"images": [], "annotations": []}'}, "describe no boxes; add annot"),
        ({"a.json": '{"version": "5", "shapes": [], "imagePath": "a.jpg"}'}, "a.json is labelme's JSON"),
        ({"p.json": '{"_via_settings": {}, "_via_img_metadata": {}}'}, "VIA's project"),
        (
            {"annotations/default.json": '{"dm_format_version": "1.0", "items": [], "categories": {}}'},
            "Datumaro's JSON",
        ),
        ({"annotations/a.json": '{"shapes": [], "imagePath": "a.jpg"}'}, "labelme's JSON"),
        ({"train/_annotations.createml.json": '[{"image": "a", "annotations": [{"coordinates": {}}]}]'}, "CreateML"),
        ({"train/_annotations.csv": "filename,width"}, "is a table"),
        ({"train/x.tfrecord": ""}, "is a TFRecord"),
        ({"set.zip": ""}, "it holds 'set.zip'; name a zip file itself"),
        ({"JPEGImages/a.jpg": ""}, "Pascal VOC, but Annotations and ImageSets is missing"),
        ({"images/a.jpg": "", "labels/classes.cache": ""}, "YOLO, but data.yaml and label files"),
    ],
)
def test_the_nearest_layout_is_named(tmp_path: Path, files: dict[str, str], nearest: str) -> None:
    for name, content in files.items():
        text(tmp_path / name, content)
    assert nearest in message(tmp_path)


def test_a_prefix_restricts_the_search(tmp_path: Path) -> None:
    writers.roboflow_coco(tmp_path, SPLITS)
    assert boxes(f"coco:{tmp_path}", "val") == [[1, 2, 30, 40]]
    assert "it fits Roboflow's COCO (<split>/_annotations.coco.json); use coco:" in message(f"yolo:{tmp_path}")


def test_a_folder_that_fits_two_layouts_says_which_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writers.roboflow_coco(tmp_path, SPLITS)
    writers.roboflow_yolo(tmp_path, SPLITS)
    assert boxes(tmp_path, "val") == [[1, 2, 30, 40]]
    assert "_annotations.coco.json), not YOLO (data.yaml), which yolo: reads; splits" in capsys.readouterr().out
    assert boxes(f"yolo:{tmp_path}", "val") == [[1, 2, 30, 40]]


def test_several_data_sets_in_a_folder_have_to_be_named(tmp_path: Path) -> None:
    for name in ("VOC2007", "VOC2012"):
        writers.cvat_voc(tmp_path / name, SPLITS)
    assert "holds several data sets, VOC2007 and VOC2012; name the folder of one" in message(tmp_path)
    for name in ("a", "b"):
        writers.cvat_images(tmp_path / "cvat" / name, SPLITS)
    assert "holds several files of CVAT" in message(tmp_path / "cvat")
    for name in ("a", "b"):
        writers.label_studio_json(tmp_path / "studio" / name, SPLITS)
    assert "holds several exports of Label Studio" in message(tmp_path / "studio")


def test_one_file_can_be_named(tmp_path: Path) -> None:
    writers.one_coco_file(tmp_path, SPLITS)
    text(tmp_path / "other.json", "{}")
    assert boxes(tmp_path / "labels_my-project.json", "all") == [[10, 20, 40, 40], [3, 4, 50, 20], [1, 2, 30, 40]]
    assert "no file of annotations that is known" in message(tmp_path / "other.json")
    writers.cvat_coco(tmp_path / "cvat coco", SPLITS)  # its images are beside the folder of the file
    assert boxes(tmp_path / "cvat coco" / "annotations" / "instances_val.json", "val") == [[1, 2, 30, 40]]
    writers.roboflow_yolo(tmp_path / "yolo", SPLITS)
    assert boxes(tmp_path / "yolo" / "data.yaml", "val") == [[1, 2, 30, 40]]
    writers.cvat_images(tmp_path / "cvat", SPLITS)
    assert boxes(tmp_path / "cvat" / "annotations.xml", "val") == [[1, 2, 30, 40]]


def test_a_path_that_does_not_exist_or_an_archive_that_is_not_a_zip(tmp_path: Path) -> None:
    assert f"coco:{tmp_path}/nowhere does not exist, or is neither" in message(f"coco:{tmp_path}/nowhere")
    assert "not a folder or file that exists" in message(tmp_path / "nowhere")
    for name in ("x" * 5000, "a\0b"):
        assert "not a folder or file that exists" in message(name)
        assert "does not exist" in message(f"coco:{name}")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a file" in message(tmp_path / "pipe")
    text(tmp_path / "set.tar.gz", "")
    assert "only zip files are read" in message(tmp_path / "set.tar.gz")


def test_a_link_that_leads_back_does_not_hang(tmp_path: Path) -> None:
    writers.roboflow_coco(tmp_path, SPLITS)
    (tmp_path / "train" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert boxes(tmp_path, "val") == [[1, 2, 30, 40]]
