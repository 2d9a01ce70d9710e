"""COCO's format: what is read, and which faults are reported."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from faster_rcnn.data.dataset import Prediction
from faster_rcnn.data.decode_check import check_before_training
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.sources import open_dataset, open_folder
from faster_rcnn.evaluation import coco_ap
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_image

CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}]


def write(folder: Path, annotations: list[dict[str, Any]], **image: Any) -> Path:
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    listed = {"id": 1, "file_name": "a.png", "height": 60, "width": 100} | image
    Image.new("RGB", (100, 60), "red").save(folder / "images" / "a.png")
    document = {"images": [listed], "categories": CATEGORIES, "annotations": annotations}
    (folder / "annotations" / "val.json").write_text(pretty(document))
    return folder


def pretty(document: dict[str, list[Any]]) -> str:
    """JSON with one element per line; with one image and two classes, the first annotation is on line 7."""
    lists = []
    for name, values in document.items():
        elements = ",\n ".join(json.dumps(value) for value in values)
        lists.append(f'"{name}": [\n {elements}]')
    return "{" + ",\n".join(lists) + "}"


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": 1, "category_id": 7, "bbox": [10, 20, 30, 20], "area": 300.0} | changes


@pytest.mark.contract("6.3")
def test_boxes_classes_areas_and_crowds_are_read(tmp_path: Path) -> None:
    crowd = annotation(id=6, category_id=9, iscrowd=1, bbox=[0, 0, 100, 60])
    dataset = open_dataset(f"coco:{write(tmp_path, [annotation(), crowd])}", "val")
    assert dataset.labels == ("cat", "dog")  # ordered by category id
    sample = dataset[0]
    assert sample.boxes.tolist() == [[10, 20, 40, 40], [0, 0, 100, 60]]
    assert sample.labels.tolist() == [0, 1]
    assert sample.crowd is not None
    assert sample.crowd.tolist() == [False, True]
    assert sample.objects().boxes.tolist() == [[10, 20, 40, 40]]


def test_optional_keys_may_be_missing_or_null(tmp_path: Path) -> None:
    bare = {"image_id": 1, "category_id": 7, "bbox": [10.5, 20, 30, 20.25]}
    nulls = annotation(bbox=[0, 0, 100, 60], area=None, iscrowd=None, segmentation=None, score=1)
    sample = open_dataset(f"coco:{write(tmp_path, [bare, nulls])}", "val")[0]
    assert sample.boxes.tolist() == [[10.5, 20, 40.5, 40.25], [0, 0, 100, 60]]
    assert sample.areas is not None
    assert sample.areas.tolist() == [30 * 20.25, 6000]
    assert sample.crowd is not None
    assert not sample.crowd.any()


def test_a_box_slightly_over_the_border_is_clipped(tmp_path: Path) -> None:
    sample = open_dataset(f"coco:{write(tmp_path, [annotation(bbox=[-0.7, 20, 102.1, 41.5])])}", "val")[0]
    assert sample.boxes.tolist() == [[0, 20, 100, 60]]


def test_ids_may_be_numbers_or_strings_in_any_order_and_images_may_be_in_subfolders(tmp_path: Path) -> None:
    categories = [{"id": 90, "name": "zebra"}, {"id": 3, "name": "yak"}, {"id": 17, "name": "ant"}]
    images = {
        "farm/a.png": tmp_path / "farm" / "a.png",
        "b.png": tmp_path / "val" / "b.png",
        "c.png": tmp_path / "images" / "val" / "c.png",
        "zoo/north/d.png": tmp_path / "images" / "zoo" / "north" / "d.png",
    }
    for shade, file in enumerate(images.values()):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 60), (shade, 0, 0)).save(file)
    ids = [700, "seven", -1, 2**70]
    listed = [
        {"id": one, "file_name": name, "height": 60.0, "width": 100} for one, name in zip(ids, images, strict=True)
    ]
    listed[0]["file_name"] = "farm\\a.png"  # as tools on Windows write it
    objects = [annotation(image_id="seven", category_id=17), annotation(image_id=2**70, category_id=90, id="x")]
    (tmp_path / "annotations").mkdir()
    document = {"annotations": objects, "categories": categories, "images": listed, "info": {"lists": [[1], [2]]}}
    (tmp_path / "annotations" / "instances_val.json").write_text("\ufeff" + json.dumps(document))
    dataset = open_dataset(f"coco:{tmp_path}", "val")
    assert dataset.labels == ("yak", "ant", "zebra")
    assert [dataset.name(index) for index in range(4)] == ["farm\\a.png", *list(images)[1:]]
    assert [dataset[index].image[0, 0, 0] for index in range(4)] == [0, 1, 2, 3]
    assert [dataset[index].labels.tolist() for index in range(4)] == [[], [1], [], [2]]


@pytest.mark.skipif("REAL_DATA_DIR" not in os.environ, reason="REAL_DATA_DIR is not set")
def test_coco_photographs_are_read_as_by_pycocotools(tmp_path: Path) -> None:
    source = Path(os.environ["REAL_DATA_DIR"]) / "coco_cc"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.json").symlink_to(source / "instances.json")
    (tmp_path / "images").symlink_to(source / "images")
    dataset = open_folder(f"coco:{tmp_path}", "val")
    assert [fault for fault in dataset.faults if not fault.warning] == []
    official = COCO(source / "instances.json")
    names = [category["name"] for category in official.loadCats(sorted(official.getCatIds()))]
    assert dataset.labels == tuple(names)
    by_name = {image["file_name"]: image for image in official.dataset["images"]}
    assert len(dataset) == len(by_name) == 60
    for index in range(len(dataset)):
        sample = dataset[index]
        expected = official.loadAnns(official.getAnnIds(by_name[dataset.name(index)]["id"]))
        corners = [(x, y, x + width, y + height) for x, y, width, height in (one["bbox"] for one in expected)]
        np.testing.assert_allclose(sample.boxes, np.array(corners).reshape(-1, 4), atol=0.5)  # clipped at the border
        assert [names[label] for label in sample.labels] == [
            official.loadCats(one["category_id"])[0]["name"] for one in expected
        ]
        assert sample.crowd is not None
        assert sample.crowd.tolist() == [bool(one["iscrowd"]) for one in expected]


def test_detections_inside_a_crowd_count_neither_as_true_nor_as_false_positives(tmp_path: Path) -> None:
    crowd = annotation(id=6, iscrowd=1, bbox=[50, 0, 50, 60])
    sample = open_dataset(f"coco:{write(tmp_path, [annotation(), crowd])}", "val")[0]
    boxes = np.array([[10, 20, 40, 40], [60, 10, 80, 40], [55, 5, 90, 50]], np.float32)
    found = Prediction(boxes, np.array([0.5, 0.9, 0.8], np.float32), np.zeros(3, np.int64))
    metrics = coco_ap([sample], [found], ("cat", "dog"))
    assert metrics["AP_by_class"]["cat"] == 1.0
    assert metrics["objects"] == 1


def test_a_rotated_photograph_is_read_upright(tmp_path: Path) -> None:
    write(tmp_path, [], file_name="b.jpg", height=100, width=60)
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.new("RGB", (100, 60), "red")
    sideways.paste("blue", (0, 0, 100, 30))  # the stored image's top half becomes the upright image's right half
    sideways.save(tmp_path / "images" / "b.jpg", exif=exif)
    image = open_dataset(f"coco:{tmp_path}", "val")[0].image
    assert image.shape == (100, 60, 3)
    assert image[50, 55, 2] > 200
    assert image[50, 5, 0] > 200


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_id": 2}, r"val.json:7:2: annotation 5 names image 2, which the file does not list; add the image"),
        ({"category_id": 8}, "annotation 5 names category 8, which the file does not list; add the category"),
        ({"bbox": [12, 20, 0, 20]}, r"annotation 5: its box \[12, 20, 0, 20\] in a.png has no area; correct or remove"),
        ({"bbox": [12, 20, 30, 0]}, r"its box \[12, 20, 30, 0\] in a.png has no area"),
        ({"bbox": [100, 20, 30, 20]}, "lies outside a.png, which is 100×60; correct or remove it"),
        ({"bbox": [10, 20, 93, 20]}, "extends beyond the border of a.png, which is 100×60; correct or remove it"),
        (
            {"bbox": ["ten", 20, 30, 20]},
            r"annotation 5: its bbox is \['ten', 20, 30, 20\], not a list of four finite numbers: x, y, w",
        ),
        (
            {"bbox": [float("nan"), 20, 30, 20]},
            "its bbox is .*, not a list of four finite numbers: .*height; correct or remove it",
        ),
        ({"bbox": [10**400, 20, 30, 20]}, "annotation 5: its bbox is"),
        ({"bbox": [10, 20, 30]}, "its bbox is .*, not a list of four finite numbers"),
        ({"bbox": None}, "annotation 5 has neither a bbox nor a segmentation; correct or remove it"),
        ({"bbox": []}, "annotation 5 has neither a bbox nor a segmentation"),
        ({"bbox": {"x": 1}}, "its bbox is {'x': 1}, not a list of four finite numbers"),
        ({"image_id": None}, "its image_id is None, not a number or a text"),
        ({"image_id": [1]}, r"its image_id is \[1\]"),
        ({"iscrowd": "yes"}, "its iscrowd is 'yes', neither 0 nor 1"),
        ({"area": -1}, "its area is -1, not a number of at least 0"),
        ({"category_id": True}, "its category_id is True"),
    ],
)
def test_a_faulty_annotation_is_reported_with_its_line(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        open_dataset(f"coco:{write(tmp_path, [annotation(**change)])}", "val")


def test_faulty_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        open_dataset("imagenet", "val")
    with pytest.raises(FileNotFoundError, match=r"layout is not known\. Found: no files\. .*annotations/<split>.json"):
        open_dataset(f"coco:{tmp_path}", "val")
    write(tmp_path, [])
    with pytest.raises(FileNotFoundError, match=r"splits found: val"):
        open_dataset(f"coco:{tmp_path}", "test")
    with pytest.raises(ValueError, match=r"a.png is 100×60 upright, listed as 100×61; correct the listed size"):
        open_dataset(f"coco:{write(tmp_path, [], height=61)}", "val")[0]
    with pytest.raises(ValueError, match=r"val.json:2:2: image file missing.png not found; these were tried: "):
        open_dataset(f"coco:{write(tmp_path, [], file_name='missing.png')}", "val")
    write(tmp_path, [])
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match=r"a.png cannot be read"):
        open_dataset(f"coco:{tmp_path}", "val")[0]
    (tmp_path / "annotations" / "val.json").write_text("{}")
    with pytest.raises(ValueError, match="not in COCO's format"):
        open_dataset(f"coco:{tmp_path}", "val")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "not JSON: it is empty; export it again"),
        (b'{"images": [', "not JSON: it ends in line 1, before it is complete, so it is cut short"),
        (b"\xff\xfe\x00", r"not JSON: its text is not in UTF-8 or, .* UTF-16 \(byte 3\)"),
        (b"[" * 100_000, "not JSON: its values are nested too deeply"),
        (b'{"a": ' * 100_000, "not JSON"),
        (b'{"images": [\xff]}', r"not JSON: its text is not in UTF-8 or, .*byte 13"),
        (b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "it is a list of 1 values, as COCO's results are"),
        (b"null", "it is None, not an object"),
        (b'{"images": []}\n{"images": []}', "line 2 begins another value, so it is JSON lines"),
        (b'{"images": []} x', "not JSON: line 1, column 16: something follows the end of the document"),
        (b'{"images": [],\n"images": []}', "line 2 repeats the key 'images'"),
        (b'{"images": [1,\n {"id": 1, "id": 2}]}', "the value at line 2 has the key 'id' twice"),
        (b'{"images": {}, "categories": [], "annotations": []}', "its images are {}, not a list"),
        (b'{"images": [], "categories": [], "annotations": []}', "its list of images is empty"),
        (b'{"images": [1], "categories": [], "annotations": []}', "its list of categories is empty"),
        (b'{"images": [1], "categories": [1], "annotations": null}', "its annotations are None, not a list"),
        (b'{"images": [[[1]]], "categories": [2], "annotations": []}', r"this image is \[\[1\]\], not an object"),
        (b'{"images": [' + b"1" * 5000 + b"]}", "not JSON: it has a number with too many digits"),
    ],
)
def test_a_document_that_is_not_coco_is_refused_in_one_line(tmp_path: Path, text: bytes, complaint: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.json").write_bytes(text)
    with pytest.raises(ValueError, match=complaint) as refusal:
        open_dataset(f"coco:{tmp_path}", "train")
    assert "train.json" in str(refusal.value)
    assert "\n" not in str(refusal.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
COCO_KEYS = (
    "id",
    "segmentation",
    "ignore",
    "supercategory",
    "image_id",
    "category_id",
    "bbox",
    "area",
    "iscrowd",
    "file_name",
    "width",
    "height",
    "name",
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_document_is_either_refused_or_has_valid_boxes(tmp_path: Path, data: st.DataObject) -> None:
    write_image(tmp_path / "a.jpg")
    document: dict[str, Any] = {
        "images": [image_entry(1, "a.jpg"), image_entry(2, "a.jpg")],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [annotation_entry(1, 1), annotation_entry(2, 1, (40, 20, 30, 20))],
    }
    for _ in range(data.draw(st.integers(1, 3))):
        element = data.draw(st.sampled_from([one for values in document.values() for one in values]))
        element[data.draw(st.sampled_from(COCO_KEYS))] = data.draw(json_values)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(document))
    refusal = ""
    try:
        dataset = open_dataset(f"coco:{tmp_path}", "train", skip_bad_boxes=True)
        check_before_training([dataset], workers=1)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert "train.json" in refusal or "has no image that can be" in refusal
        return
    assert isinstance(dataset, FolderDataset)
    for index in range(len(dataset)):
        sample = dataset[index]
        height, width = sample.image.shape[:2]
        assert (sample.boxes[:, :2] >= 0).all()
        assert (sample.boxes[:, 2:] <= [width, height]).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert set(sample.labels.tolist()) <= set(range(len(dataset.labels)))
