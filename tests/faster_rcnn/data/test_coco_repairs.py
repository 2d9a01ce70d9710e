"""COCO's format as tools write it: what is completed or understood otherwise, and counted once for a split."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask

from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.sources import open_dataset, open_folder
from tests.faster_rcnn.data.coco_folder import write_image

POLYGON = [40, 50, 140, 50, 140, 130, 40, 130]  # x 40..140, y 50..130


def write(
    folder: Path,
    annotations: list[Any],
    images: list[Any] | None = None,
    categories: list[Any] | None = None,
    split: str = "train",
) -> str:
    """Writes a data set with one image of 200×150 pixels, unless others are given, and the classes cat 1 and dog 2."""
    (folder / "annotations").mkdir(exist_ok=True)
    if not (folder / "a.jpg").exists():
        write_image(folder / "a.jpg", (200, 150))
    document = {
        "images": images or [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 150}],
        "categories": categories or [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(document))
    return f"coco:{folder}"


def entry(**changes: Any) -> dict[str, Any]:
    """An annotation of the box x 40..140, y 50..130; a change to `...` removes the key."""
    whole = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [40, 50, 100, 80],
        "area": 8000.0,
        "iscrowd": 0,
    } | changes
    return {key: value for key, value in whole.items() if value is not ...}


def warnings(source: str, split: str = "train") -> dict[str, str]:
    """The warnings of a split by their kinds, of which each occurs once."""
    faults = open_folder(source, split).faults
    assert all(fault.warning for fault in faults), faults
    assert len({fault.kind for fault in faults}) == len(faults)
    return {fault.kind: fault.what for fault in faults}


def square_mask(compressed: bool) -> dict[str, Any]:
    pixels = np.zeros((150, 200), np.uint8)
    pixels[50:130, 40:140] = 1
    if compressed:
        return {"size": [150, 200], "counts": mask.encode(np.asfortranarray(pixels))["counts"].decode()}
    # Columns of 150 pixels: 40 empty ones and 50 rows, then 80 pixels and 70 empty ones in turn.
    return {"size": [150, 200], "counts": [40 * 150 + 50, *([80, 70] * 99), 80, 59 * 150 + 150 + 20]}


@pytest.mark.parametrize(
    "outline",
    [
        [POLYGON],
        POLYGON,
        [[40, 50, 60, 60, 50, 70], [100, 90, 140, 130, 100, 130]],
        [[[40, 50], [140, 130], [60, 120]]],
        [["40", "50", "140.0", "130", "60", "120"]],
        square_mask(compressed=True),
        square_mask(compressed=False),
    ],
)
@pytest.mark.parametrize("box", [..., None, [], [0, 0, 0, 0]])
@pytest.mark.contract("6.5")
def test_an_annotation_without_a_box_has_the_box_of_its_outline(tmp_path: Path, outline: Any, box: Any) -> None:
    source = write(tmp_path, [entry(bbox=box, segmentation=outline), entry(id=2, category_id=2)])
    sample = open_dataset(source, "train")[0]
    assert sample.boxes.tolist() == [[40, 50, 140, 130]] * 2
    assert warnings(source)["box from the outline"] == (
        "split train: 1 of 2 annotations have no bbox with an area; the box of their segmentation is used; "
        "the first is annotation 1"
    )


def test_outlines_that_cannot_be_used_need_a_bbox(tmp_path: Path) -> None:
    wrong = [[[1, 2, 3]], "polygon", {"size": [9, 9], "counts": [81]}]
    source = write(tmp_path, [entry(id=number, bbox=None, segmentation=one) for number, one in enumerate(wrong)])
    assert [fault.what for fault in open_folder(source, "train").faults] == [
        "annotation 0 has no bbox, and its segmentation is [1, 2, 3]: 3 numbers are not the x and y of several points",
        "annotation 1 has no bbox, and its segmentation is 'polygon', neither polygons nor run lengths",
        "annotation 2 has no bbox, and its segmentation is a mask of 9×9 pixels, but a.jpg is 200×150",
    ]
    boxes = [[10 * number, 10, 9, 9] for number in range(3)]
    entries = [entry(id=number, bbox=boxes[number], area=81, segmentation=one) for number, one in enumerate(wrong)]
    source = write(tmp_path, entries)
    assert len(open_dataset(source, "train")[0].boxes) == 3
    assert "3 of 3 annotations have a segmentation that cannot be used" in warnings(source)["unusable segmentation"]


def test_a_bbox_that_disagrees_with_its_segmentation_is_reported_and_used(tmp_path: Path) -> None:
    source = write(
        tmp_path, [entry(segmentation=[POLYGON]), entry(id=2, bbox=[20, 50, 100, 80], segmentation=[POLYGON])]
    )
    assert open_dataset(source, "train")[0].boxes.tolist() == [[40, 50, 140, 130], [20, 50, 120, 130]]
    found = warnings(source)["bbox and segmentation differ"]
    assert found.startswith(
        "split train: 1 of 2 annotations have a bbox that differs from the box of their segmentation"
    )
    assert found.endswith("the first is annotation 2: [20, 50, 100, 80] and [40, 50, 100, 80]")
    rounded = write(tmp_path, [entry(bbox=[42, 48, 100, 80], segmentation=[POLYGON])])
    assert warnings(rounded) == {}


def test_numbers_may_be_text(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.jpg", "width": "200", "height": "150"}
    source = write(tmp_path, [entry(bbox=["40", "50", "100.0", "80"], area="8000")], images=[image])
    sample = open_dataset(source, "train")[0]
    assert sample.boxes.tolist() == [[40, 50, 140, 130]]
    assert sample.areas is not None
    assert sample.areas.tolist() == [8000]
    assert [fault.what.partition(";")[0] for fault in open_folder(source, "train").faults] == [
        "split train: 1 of 1 images hold numbers as text, which are read as numbers",
        "split train: 1 of 1 annotations hold numbers as text, which are read as numbers",
    ]


def test_a_negative_width_means_that_the_box_begins_at_the_other_corner(tmp_path: Path) -> None:
    source = write(tmp_path, [entry(bbox=[140, 130, -100, -80]), entry(id=2, bbox=[0, 0, 9, 9], area=81)])
    assert open_dataset(source, "train")[0].boxes.tolist() == [[40, 50, 140, 130], [0, 0, 9, 9]]
    assert "1 of 2 annotations have a negative width or height" in warnings(source)["negative width or height"]


def test_corners_instead_of_sizes_are_refused_with_figures_and_the_remedy(tmp_path: Path) -> None:
    # As x, y, width, height the second and third leave the image of 200×150: 90 + 190, 100 + 180.
    corners = [[5, 5, 50, 50], [90, 70, 190, 140], [100, 20, 180, 60]]
    source = write(tmp_path, [entry(id=number, bbox=box, area=1) for number, box in enumerate(corners)])
    with pytest.raises(
        ValueError, match=r"2 of 3 boxes leave .* but 3 of 3 fit as corners .*; write each bbox as \[x1"
    ):
        open_dataset(source, "train", skip_bad_boxes=True)
    # Small boxes near the top left fit either way; their outlines tell.
    outlines = [[[x, y, x2, y, x2, y2, x, y2]] for x, y, x2, y2 in ([5, 5, 50, 50], [30, 20, 60, 40])]
    small = [
        entry(id=0, bbox=[5, 5, 50, 50], segmentation=outlines[0]),
        entry(id=1, bbox=[30, 20, 60, 40], segmentation=outlines[1]),
        entry(id=2, bbox=[30, 20, 60, 40], segmentation=outlines[1]),
    ]
    with pytest.raises(ValueError, match=r"3 boxes agree with their segmentation as corners .*, and only 0 as"):
        open_dataset(write(tmp_path, small), "train", skip_bad_boxes=True)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.integers(0, 150)] * 2, *[st.integers(1, 150)] * 2), min_size=1, max_size=6))
def test_boxes_inside_their_images_are_never_taken_for_corners(tmp_path: Path, boxes: list[tuple[int, ...]]) -> None:
    inside = [(x, y, min(width, 200 - x), min(height, 150 - y)) for x, y, width, height in boxes if y < 150]
    source = write(tmp_path, [entry(id=number, bbox=box, area=1) for number, box in enumerate(inside)])
    assert isinstance(open_folder(source, "train"), FolderDataset)


def test_fractions_instead_of_pixels_are_refused_with_the_remedy(tmp_path: Path) -> None:
    source = write(tmp_path, [entry(bbox=[0.2, 0.1, 0.5, 0.4])])
    with pytest.raises(
        ValueError, match=r"all 1 boxes lie between 0 and 1, .*; multiply x and width by the image's width"
    ):
        open_dataset(source, "train", skip_bad_boxes=True)


@pytest.mark.parametrize(
    ("area", "outline", "expected", "kind"),
    [
        (0, None, 8000, "missing area"),
        (..., None, 8000, "missing area"),
        (None, [POLYGON], 8000, "missing area"),
        (0, [[40, 50, 140, 130, 40, 130]], 4000, "missing area"),  # the half of the box below its diagonal
        (float("nan"), None, 8000, "missing area"),
        ("", None, 8000, "missing area"),
        (80, [[40, 50, 140, 130, 40, 130]], 4000, "impossible area"),
        (32000, None, 8000, "impossible area"),  # measured at twice the size
        (32000, square_mask(compressed=True), 8000, "impossible area"),
        (4100, [[40, 50, 140, 130, 40, 130]], 4100, ""),
        (100, None, 100, ""),  # a thin diagonal object
    ],
)
def test_areas_that_are_missing_or_impossible_come_from_the_outline_or_the_box(
    tmp_path: Path, area: Any, outline: Any, expected: float, kind: str
) -> None:
    source = write(tmp_path, [entry(area=area, segmentation=outline), entry(id=2, category_id=2)])
    areas = open_dataset(source, "train")[0].areas
    assert areas is not None
    assert areas.tolist() == [expected, 8000]
    found = [what for name, what in warnings(source).items() if name == kind]
    assert [what.startswith("split train: 1 of 2 annotations have") for what in found] == [True] * bool(kind)


@pytest.mark.parametrize(
    ("written", "crowd", "counted"),
    [
        (..., False, 0),
        (None, False, 0),
        (0, False, 0),
        (1, True, 0),
        (True, True, 0),
        ("1", True, 1),
        ("False", False, 1),
    ],
)
def test_iscrowd_may_be_missing_or_a_word(tmp_path: Path, written: Any, crowd: bool, counted: int) -> None:
    source = write(tmp_path, [entry(iscrowd=written)])
    found = open_dataset(source, "train")[0].crowd
    assert found is not None
    assert found.tolist() == [crowd]
    assert list(warnings(source)) == ["number as text"] * counted


def test_ignored_objects_count_neither_way(tmp_path: Path) -> None:
    source = write(tmp_path, [entry(ignore=1), entry(id=2, category_id=2, ignore=0)])
    sample = open_dataset(source, "train")[0]
    assert sample.objects().labels.tolist() == [1]
    assert "1 of 2 annotations have ignore set" in warnings(source)["ignored objects"]


@pytest.mark.parametrize(
    ("image_id", "listed"),
    [("1", 1), (1, "1"), (1.0, "1"), ("0001", 1), (1, "0001"), (" 1", 1), ("cat.jpg", " cat.jpg")],
)
def test_ids_may_be_text_in_one_place_and_numbers_in_another(tmp_path: Path, image_id: Any, listed: Any) -> None:
    image = {"id": listed, "file_name": "a.jpg", "width": 200, "height": 150}
    categories = [{"id": "10", "name": "dog"}, {"id": "2", "name": "cat"}]
    source = write(tmp_path, [entry(image_id=image_id, category_id=10)], images=[image], categories=categories)
    dataset = open_dataset(source, "train")
    assert dataset.labels == ("cat", "dog")  # 2 before 10, although they are text
    assert dataset[0].labels.tolist() == [1]
    assert "1 of 1 annotations name their image or category by an id of another type" in warnings(source)["mixed ids"]


def test_an_id_that_several_ids_look_like_is_not_guessed(tmp_path: Path) -> None:
    write_image(tmp_path / "b.jpg", (200, 150))
    images = [
        {"id": one, "file_name": name, "width": 200, "height": 150} for one, name in (("1", "a.jpg"), ("01", "b.jpg"))
    ]
    source = write(tmp_path, [entry(image_id="01"), entry(id=2, image_id=1)], images=images)
    dataset = open_folder(source, "train")
    assert [len(dataset.objects(index)[0]) for index in range(2)] == [0, 1]
    assert [fault.kind for fault in dataset.faults] == ["annotation of an unknown image"]


def test_ids_that_are_used_twice_are_counted(tmp_path: Path) -> None:
    boxes = [[40 * number, 0, 9, 9] for number in range(4)]
    source = write(tmp_path, [entry(id=number // 3, bbox=box, area=81) for number, box in enumerate(boxes)])
    assert len(open_dataset(source, "train")[0].boxes) == 4
    assert warnings(source)["ids used twice"] == (
        "split train: 2 of 4 annotations have the id of another one; both are used; the first is annotation 0"
    )


ROOT = {"id": 0, "name": "animals", "supercategory": "none"}
CHILDREN = [
    {"id": 1, "name": "cat", "supercategory": "animals"},
    {"id": 7, "name": "dog", "supercategory": "animals"},
]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (ROOT, "animals (the root of 2 others)"),
        ({"id": 99, "name": "Background"}, "Background (the background)"),
        ({"id": 0, "name": "__background__", "supercategory": "animals"}, "__background__ (the background)"),
    ],
)
@pytest.mark.contract("6.5")
def test_a_root_or_background_without_objects_is_no_class_and_said_so(
    tmp_path: Path, extra: dict[str, Any], why: str
) -> None:
    source = write(tmp_path, [entry(category_id=7)], categories=[extra, *CHILDREN])
    dataset = open_dataset(source, "train")
    assert dataset.labels == ("cat", "dog")
    assert dataset[0].labels.tolist() == [1]
    assert warnings(source)["category left out"] == (
        f"not classes: {why}; a category without objects in any split is left out if it is only the root of others or "
        "the background"
    )


def test_a_root_with_objects_in_any_split_is_a_class_in_all_of_them(tmp_path: Path) -> None:
    source = write(tmp_path, [entry()], categories=[ROOT, *CHILDREN])
    write(tmp_path, [entry(category_id=0)], categories=[ROOT, *CHILDREN], split="val")
    assert open_dataset(source, "train").labels == open_dataset(source, "val").labels == ("animals", "cat", "dog")
    assert warnings(source) == {}


def test_a_category_that_is_its_own_supercategory_or_has_a_parent_is_a_class(tmp_path: Path) -> None:
    person = {"id": 1, "name": "person", "supercategory": "person"}  # as in COCO
    middle = [{"id": 2, "name": "pet", "supercategory": "animal"}, {"id": 3, "name": "cat", "supercategory": "pet"}]
    source = write(tmp_path, [entry(category_id=3)], categories=[person, *middle])
    assert open_dataset(source, "train").labels == ("person", "pet", "cat")


def test_ids_of_categories_may_have_gaps_and_begin_at_0(tmp_path: Path) -> None:
    categories = [{"id": 90, "name": "c"}, {"id": 0, "name": "a"}, {"id": 13, "name": "b"}]
    source = write(tmp_path, [entry(category_id=0), entry(id=2, category_id=90)], categories=categories)
    dataset = open_dataset(source, "train")
    assert dataset.labels == ("a", "b", "c")
    assert dataset[0].labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    "size",
    [{}, {"width": 0, "height": 0}, {"width": None, "height": None}, {"width": 200}, {"width": "?", "height": 9}],
)
def test_missing_sizes_come_from_the_files_upright(tmp_path: Path, size: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 150×200, shown 200×150
    for name in ("turned.jpg", "turned.png"):
        Image.new("RGB", (150, 200), "red").save(tmp_path / name, exif=exif)
    names = ["a.jpg", "turned.jpg", "turned.png"]
    images = [{"id": number, "file_name": name} | size for number, name in enumerate(names)]
    images.append({"id": 9, "file_name": "b.jpg", "width": 100, "height": 60})
    write_image(tmp_path / "b.jpg")
    source = write(tmp_path, [entry()], images=images)
    dataset = open_folder(source, "train")
    assert [dataset.size(index) for index in range(4)] == [(150, 200)] * 3 + [(60, 100)]
    assert warnings(source) == {
        "missing size": "split train: 3 of 4 images have no width and height that can be used; "
        "the sizes of their files are used; the first is a.jpg, 200×150"
    }


def test_a_png_whose_orientation_follows_its_pixels_is_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (150, 200), "red").save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]  # before IEND, which has 12 bytes
    (tmp_path / "a.png").write_bytes(moved)
    source = write(tmp_path, [entry()], images=[{"id": 1, "file_name": "a.png"}])
    assert open_dataset(source, "train")[0].image.shape == (150, 200, 3)


def test_an_image_without_a_size_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_text("<html>")
    source = write(tmp_path, [entry()], images=[{"id": 1, "file_name": "b.jpg"}])
    with pytest.raises(
        ValueError, match=r"b.jpg has no size in the annotations, and its file cannot be read: it is not"
    ):
        open_dataset(source, "train")


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("b.jpg", "b.JPG"),
        ("Photo.JPG", "photo.jpg"),
        ("my%20dog%28.jpg", "my dog(.jpg"),
        ("my dog.jpg", "my%20dog.jpg"),
        ("Farm\\B.jpg", "farm/b.jpg"),
        ("IMAGES/b.jpg", "images/b.jpg"),
        ("fa%CC%81rm/b.jpg", "images/f\u00e1rm/b.jpg"),
    ],
)
def test_an_image_is_found_under_a_name_that_looks_alike(tmp_path: Path, listed: str, on_disk: str) -> None:
    write_image(tmp_path / on_disk, (200, 150))
    source = write(tmp_path, [entry()], images=[{"id": 1, "file_name": listed, "width": 200, "height": 150}])
    dataset = open_dataset(source, "train")
    assert isinstance(dataset, FolderDataset)
    assert dataset.path(0) == tmp_path / on_disk
    assert dataset[0].boxes.tolist() == [[40, 50, 140, 130]]
    name = Path(on_disk).name
    assert warnings(source)["image under another name"] == (
        "split train: 1 of 1 images have a file whose name differs in letter case, Unicode form or percent-coding; "
        f"it is used; the first is {listed}, found as {name}"
    )


@pytest.mark.parametrize("listed", ["./b.jpg", "b.jpg", ".\\b.jpg", "images/b.jpg", "images\\b.jpg"])
def test_other_ways_to_write_a_path_are_no_look_alikes(tmp_path: Path, listed: str) -> None:
    write_image(tmp_path / "images" / "b.jpg", (200, 150))
    source = write(tmp_path, [entry()], images=[{"id": 1, "file_name": listed, "width": 200, "height": 150}])
    assert len(open_dataset(source, "train")) == 1
    assert warnings(source) == {}


def test_several_look_alikes_or_another_extension_are_named_and_not_taken(tmp_path: Path) -> None:
    for name in ("B.jpg", "b.JPG", "c.png"):
        write_image(tmp_path / name, (200, 150))
    images = [{"id": name, "file_name": name, "width": 200, "height": 150} for name in ("b.jpg", "c.jpg")]
    found = [fault.what for fault in open_folder(write(tmp_path, [], images=images), "train").faults]
    assert found[0].startswith("image file b.jpg not found, but ")
    assert {"B.jpg", "b.JPG"} <= {Path(word.rstrip(",")).name for word in found[0].split()}
    assert found[1].endswith(f"; there is {tmp_path / 'c.png'}")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="aÄé\u0301ßİ日 %(", min_size=1, max_size=6))
def test_any_name_is_found_in_its_other_unicode_form(tmp_path: Path, stem: str) -> None:
    for old in tmp_path.glob("x*.jpg"):
        old.unlink()
    write_image(tmp_path / unicodedata.normalize("NFD", f"x{stem}.jpg"), (200, 150))
    listed = unicodedata.normalize("NFC", f"x{stem}.jpg")
    source = write(tmp_path, [entry()], images=[{"id": 1, "file_name": listed, "width": 200, "height": 150}])
    assert len(open_folder(source, "train")) == 1
