"""CVAT's and Label Studio's own formats: shapes other than plain boxes, and tasks that are not plainly annotated."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from faster_rcnn.data.layouts.shapes_to_boxes import ellipse_box, turned
from faster_rcnn.data.sources import open_dataset, open_folder
from tests.faster_rcnn.data.layouts.layout_writers import Photo, text, write_photo


def cvat(root: Path, shapes: str, name: str = "a.jpg") -> str:
    write_photo(root / "images" / "a.jpg", Photo("a", 100, 100, ()))
    image = f'<image id="0" name="{name}" width="100" height="100">\n{shapes}\n</image>'
    text(root / "annotations.xml", f"<annotations>\n<version>1.1</version>\n{image}\n</annotations>")
    return str(root)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ('<box label="dog" xtl="10.5" ytl="20" xbr="30" ybr="40"/>', [10.5, 20, 30, 40]),
        # a quarter turn about the centre (40, 30): 40×20 becomes 20×40
        ('<box label="dog" xtl="20" ytl="20" xbr="60" ybr="40" rotation="90"/>', [30, 10, 50, 50]),
        ('<polygon label="dog" points="10.0,20.0;30.0,25.0;15.0,40.0"/>', [10, 20, 30, 40]),
        ('<polyline label="dog" points="10,20;30,40"/>', [10, 20, 30, 40]),
        ('<ellipse label="dog" cx="50" cy="50" rx="20" ry="10"/>', [30, 40, 70, 60]),
        ('<ellipse label="dog" cx="50" cy="50" rx="20" ry="10" rotation="90"/>', [40, 30, 60, 70]),
        ('<mask label="dog" rle="0, 4" left="10" top="20" width="20" height="30"/>', [10, 20, 30, 50]),
        ('<cuboid label="dog" xtl1="10" ytl1="20" xbl1="12" ybl1="40" xtr2="30" ytr2="25"/>', [10, 20, 30, 40]),
    ],
)
def test_boxes_around_the_shapes_of_cvat(tmp_path: Path, shape: str, box: list[float]) -> None:
    assert open_dataset(cvat(tmp_path, shape), "all")[0].boxes.round(4).tolist() == [box]


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ('<box label="dog" xtl="ten" ytl="20" xbr="30" ybr="40"/>', "annotations.xml:5: .*are not numbers"),
        ('<box label="dog" ytl="20" xbr="30" ybr="40"/>', "are not numbers"),
        ('<box label="dog" xtl="nan" ytl="20" xbr="30" ybr="40"/>', "are not numbers"),
        ('<polygon label="dog" points=""/>', "are not numbers"),
        ('<box xtl="10" ytl="20" xbr="30" ybr="40"/>', "has no label"),
        ('<box label="dog" xtl="10" ytl="20" xbr="10" ybr="40"/>', "has no area"),
    ],
)
def test_faulty_shapes_of_cvat_are_reported(tmp_path: Path, shape: str, complaint: str) -> None:
    source = cvat(tmp_path, f'<box label="dog" xtl="1" ytl="2" xbr="3" ybr="4"/>\n{shape}')
    with pytest.raises(ValueError, match=complaint):
        open_dataset(source, "all")
    assert open_dataset(source, "all", skip_bad_boxes=True)[0].boxes.tolist() == [[1, 2, 3, 4]]


def test_points_and_missing_images_of_cvat_are_reported(tmp_path: Path) -> None:
    dog = '<box label="dog" xtl="1" ytl="2" xbr="3" ybr="4"/>'
    faults = open_folder(cvat(tmp_path, f'{dog}<points label="eye" points="1,2"/><tag label="wet"/>'), "all").faults
    assert [(fault.kind, fault.warning) for fault in faults] == [("annotation without a box", True)]
    with pytest.raises(ValueError, match=r"image 'b.jpg' is not in the folder; .*'Save images'"):
        open_dataset(cvat(tmp_path, dog, "b.jpg"), "all")
    text(tmp_path / "annotations.xml", "<annotations><track></track></annotations>")
    with pytest.raises(ValueError, match=r"CVAT for video; export the task again as CVAT for images 1.1"):
        open_dataset(str(tmp_path), "all")
    text(tmp_path / "annotations.xml", "<annotations><image>")
    with pytest.raises(
        ValueError, match=r"annotations.xml:1: not XML: the file ends inside an element, so it is cut short"
    ):
        open_dataset(str(tmp_path), "all")


@pytest.mark.contract("6.5")
def test_boxes_around_turned_shapes_of_cvat_are_clipped_with_one_warning(tmp_path: Path) -> None:
    """CVAT lets a shape be turned beyond the border; a box that was drawn beyond it is still a fault."""
    shapes = [
        '<box label="dog" xtl="0" ytl="0" xbr="20" ybr="40" rotation="90"/>',  # becomes -10, 10, 30, 30
        '<ellipse label="dog" cx="50" cy="5" rx="20" ry="10"/>',  # 30, -5, 70, 15
        '<box label="dog" xtl="1" ytl="2" xbr="3" ybr="4"/>',
    ]
    dataset = open_folder(cvat(tmp_path, "\n".join(shapes)), "all")
    assert dataset.objects(0)[0].round(3).tolist() == [[0, 10, 30, 30], [30, 0, 70, 15], [1, 2, 3, 4]]
    (warning,) = dataset.faults
    assert "annotations.xml:" in str(warning)
    assert "2 of 3 shapes are turned or round, and the upright box around them extends beyond" in str(warning)
    with pytest.raises(ValueError, match="extends beyond the border"):
        open_dataset(cvat(tmp_path, shapes[0].replace('"90"', '"0"').replace('xtl="0"', 'xtl="-9"')), "all")


SIDES = {"original_width": 200, "original_height": 100}
BOX = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["dog"]}  # 20, 20, 80, 60


def task(*values: dict[str, Any], image: str = "/data/upload/1/0a1b2c3d-a.jpg", **changes: Any) -> dict[str, Any]:
    result = [{**SIDES, "value": value, "id": str(number)} for number, value in enumerate(values)]
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": result}]} | changes


def studio(root: Path, *tasks: Any) -> str:
    write_photo(root / "photos" / "a.jpg", Photo("a", 200, 100, ()))
    text(root / "project.json", json.dumps(tasks))
    return str(root)


@pytest.mark.parametrize(
    ("value", "box"),
    [
        (BOX, [20, 20, 80, 60]),
        # a quarter turn about the top left corner (20, 20): 60×40 becomes 40×60, to the left of the corner
        (BOX | {"x": 50, "rotation": 90}, [100 - 40, 20, 100, 20 + 60]),
        ({"points": [[10, 20], [40, 20], [25, 60]], "polygonlabels": ["dog"]}, [20, 20, 80, 60]),
        ({"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 0, "ellipselabels": ["dog"]}, [80, 30, 120, 70]),
    ],
)
def test_boxes_around_the_shapes_of_label_studio(tmp_path: Path, value: dict[str, Any], box: list[float]) -> None:
    assert open_dataset(studio(tmp_path, task(value)), "all")[0].boxes.round(3).tolist() == [box]


@pytest.mark.contract("6.5")
def test_boxes_around_turned_shapes_of_label_studio_are_clipped_with_one_warning(tmp_path: Path) -> None:
    turned = BOX | {"rotation": 90}  # about (20, 20): 60×40 becomes 40×60, from x = 20 - 40 = -20
    dataset = open_folder(studio(tmp_path, task(turned, BOX)), "all")
    assert dataset.objects(0)[0].round(3).tolist() == [[0, 20, 20, 80], [20, 20, 80, 60]]
    (warning,) = (fault for fault in dataset.faults if fault.kind == "turned shape beyond the image")
    assert "1 of 2 shapes are turned or round" in str(warning)


def test_a_shape_with_its_label_in_another_result_or_with_two_labels(tmp_path: Path) -> None:
    bare = {name: value for name, value in BOX.items() if name != "rectanglelabels"}
    both = task(bare, bare | {"labels": ["dog", "wet"]})
    for result in both["annotations"][0]["result"]:
        result["id"] = "the same"
    dataset = open_folder(studio(tmp_path, both), "all")
    assert [fault.kind for fault in dataset.faults] == ["image found elsewhere"]
    assert dataset.objects(0)[0].tolist() == [[20, 20, 80, 60]] * 2
    assert dataset.objects(0)[1].tolist() == [0, 1]


def test_what_is_left_out_or_decided_is_counted(tmp_path: Path) -> None:
    second = task(BOX, BOX | {"x": 50}) | {"id": 2}
    second["annotations"] = [task(BOX)["annotations"][0] | {"ground_truth": True}, *second["annotations"]]
    brush = {"format": "rle", "rle": [1, 2], "brushlabels": ["dog"]}
    tasks = [
        task(BOX, brush, {"choices": ["sunny"]}) | {"data": {"image": "/data/upload/1/b.jpg"}},
        second,
        task() | {"annotations": []},
        task() | {"annotations": [{"was_cancelled": True, "result": []}]},
    ]
    write_photo(tmp_path / "b.jpg", Photo("b", 200, 100, ()))
    dataset = open_folder(studio(tmp_path, *tasks), "all")
    assert [len(dataset.objects(index)[0]) for index in range(len(dataset))] == [1, 1]
    found = {fault.kind: fault.what for fault in dataset.faults if fault.warning}
    assert found.keys() == {
        "image found elsewhere", "image without annotations", "several annotations", "annotation without a box"
    }  # fmt: skip
    assert found["image without annotations"].startswith("2 of 4 tasks have not been annotated")
    assert found["several annotations"].startswith("1 tasks have several annotations")
    assert found["annotation without a box"] == "1 × brushlabels have no box and are left out"


@pytest.mark.parametrize(
    ("tasks", "complaint"),
    [
        ([task(BOX | {"x": "ten"})], "its coordinates are not numbers"),
        ([task(BOX | {"width": None})], "its coordinates are not numbers"),
        ([task(BOX), 7], "this task is 7, without an image"),
        ([task(BOX), {"data": {"text": "a review"}, "annotations": []}], "without an image"),
        (
            [task(BOX, image="/data/upload/1/b.jpg")],
            r"is not in the folder of the file, .*Label Studio's JSON has no images",
        ),
        ([task()], "no task has a labelled box"),
    ],
)
def test_faulty_tasks_are_reported(tmp_path: Path, tasks: list[Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        open_dataset(studio(tmp_path, *tasks), "all")
    assert "\n" not in str(refusal.value)


def test_a_turned_ellipse_is_surrounded() -> None:
    """At 45°, the half sides of the box are sqrt((20² + 10²) / 2) = 15.81."""
    half = math.sqrt((400 + 100) / 2)
    assert ellipse_box(0, 0, 20, 10, 45) == pytest.approx((-half, -half, half, half))


def test_a_turn_is_clockwise_where_y_points_down() -> None:
    assert turned([(10, 0)], (0, 0), 90) == [pytest.approx((0, 10))]
