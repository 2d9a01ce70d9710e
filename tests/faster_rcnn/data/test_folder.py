"""A data set in a folder: images and classes with faults."""

from pathlib import Path

import pytest

from faster_rcnn.data.sources import open_dataset, open_folder
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder, write_image


@pytest.mark.parametrize(("data", "why"), [(b"", "it is empty;"), (b"no image", "it is text, not an image;")])
def test_the_reason_why_a_file_cannot_be_read_is_worded_for_a_local_file(tmp_path: Path, data: bytes, why: str) -> None:
    write_image(tmp_path / "a.jpg")
    source = write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], [annotation_entry(1, 1)])
    dataset = open_dataset(source, "train")
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=f"a.jpg cannot be read: {why}"):
        dataset[0]


def test_images_that_are_listed_twice_malformed_or_outside_the_folder_are_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "inside" / "a.jpg")
    write_image(tmp_path / "outside.jpg")
    images = [
        image_entry(1, "a.jpg"),
        image_entry(1, "a.jpg"),
        image_entry(2, "a.jpg"),
        image_entry(3, "../outside.jpg"),
        image_entry(4, str(tmp_path / "outside.jpg")),
        image_entry(5, ["a.jpg"]),
        {"id": 6},
        None,
        image_entry(7, "a\x00.jpg"),
        image_entry(8, "x" * 5000),
    ]
    dataset = open_folder(
        write_coco_folder(
            tmp_path / "inside", images, [annotation_entry(1, 3), annotation_entry(2, 5), annotation_entry(3, 1)]
        ),
        "train",
    )
    found = {fault.where.rpartition("json:")[2]: fault.kind for fault in dataset.faults}
    assert found == {
        "3:1": "image listed twice",
        "4:1": "image listed twice",
        "5:1": "name outside the folder",
        "6:1": "name outside the folder",
        "7:1": "malformed image",
        "8:1": "malformed image",
        "9:1": "malformed image",
        "10:1": "missing image",
        "11:1": "missing image",
    }
    assert len(dataset) == 1
    assert len(dataset.objects(0)[0]) == 1
    assert all("\n" not in str(fault) and "\x00" not in str(fault) for fault in dataset.faults)


@pytest.mark.parametrize(
    ("names", "kind", "warning"),
    [
        (("dog", "Dog"), "similar class names", True),
        (("dog", " dog"), "similar class names", True),
        (("hot dog", "hot  dog"), "similar class names", True),
        (("dog", "dog"), "class listed twice", False),
        (("dog", " "), "malformed category", False),
    ],
)
def test_class_names_that_a_person_would_confuse_are_reported(
    tmp_path: Path, names: tuple[str, ...], kind: str, warning: bool
) -> None:
    write_image(tmp_path / "a.jpg")
    source = write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], [annotation_entry(1, 1)], names=names)
    faults = open_folder(source, "train").faults
    assert [(fault.kind, fault.warning) for fault in faults] == [(kind, warning)]
    if not warning:  # leaving the class out would renumber the others
        with pytest.raises(ValueError, match=r"train.json:5:1: .*lists all$"):
            open_dataset(source, "train", skip_bad_boxes=True)


def test_an_outline_that_leaves_the_image_has_at_most_the_area_of_its_clipped_box(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")  # 100×60
    whole, crossing = annotation_entry(1, 1, (0, 0, 10, 20)), annotation_entry(2, 1, (98, 0, 4, 30))
    source = write_coco_folder(
        tmp_path, [image_entry(1, "a.jpg")], [whole | {"area": 201.0}, crossing | {"area": 110.0}]
    )
    areas = open_folder(source, "train").all_objects(0).areas.tolist()
    assert areas == [201.0, 60.0]  # the second box is clipped to 2×30
