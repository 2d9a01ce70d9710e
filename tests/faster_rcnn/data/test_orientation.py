"""Boxes of images that their EXIF orientation turns: all eight orientations, with sizes that tell and that do not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faster_rcnn.data.annotations import AnnotatedImage, Annotation
from faster_rcnn.data.decode_check import check_images, open_checked
from faster_rcnn.data.orientation import turned, turned_box
from faster_rcnn.data.sources import open_dataset, open_folder
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder

# A box on a stored image of 100 × 60, and where it is when the image is upright.
BOX = (10, 20, 40, 50)
UPRIGHT = {
    1: (10, 20, 40, 50),
    2: (60, 20, 90, 50),  # mirrored: x from 100 - 40 to 100 - 10
    3: (60, 10, 90, 40),  # half a turn: also y from 60 - 50 to 60 - 20
    4: (10, 10, 40, 40),  # upside down and mirrored
    5: (20, 10, 50, 40),  # x and y exchanged
    6: (10, 10, 40, 40),  # a quarter turn clockwise: x from 60 - 50 to 60 - 20, y from 10 to 40
    7: (10, 60, 40, 90),  # exchanged, then half a turn
    8: (20, 60, 50, 90),  # a quarter turn anticlockwise: x from 20 to 50, y from 100 - 40 to 100 - 10
}


def write_turned(file: Path, orientation: int, size: tuple[int, int] = (100, 60), kind: str = "PNG") -> None:
    """A stored image that is white in BOX and black elsewhere."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, kind, exif=exif)


def white_box(image: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(image[..., 0] > 128)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def data_set(folder: Path, orientation: int, size: tuple[int, int] = (100, 60), **listed: int) -> str:
    """One image and its white box, both as they are stored."""
    write_turned(folder / "a.png", orientation, size)
    x1, y1, x2, y2 = BOX
    box = (x1, y1, x2 - x1, y2 - y1)
    entry = image_entry(1, "a.png", **({"width": size[0], "height": size[1]} | listed))
    return write_coco_folder(folder, [entry], [annotation_entry(1, 1, box)])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_turns_with_its_image(orientation: int) -> None:
    assert turned_box(BOX, 100, 60, orientation) == UPRIGHT[orientation]


@pytest.mark.contract("6.11")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_drawn_on_the_stored_image_are_turned_onto_the_same_pixels(tmp_path: Path, orientation: int) -> None:
    dataset = open_checked(data_set(tmp_path, orientation), "train", workers=1, exif_boxes="stored")
    sample = dataset[0]
    assert sample.boxes.tolist() == [list(UPRIGHT[orientation])] == [white_box(sample.image)]
    assert dataset.size(0) == ((100, 60) if orientation >= 5 else (60, 100))


@pytest.mark.contract("6.11")
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_size_that_is_upright_says_that_the_boxes_are_upright(tmp_path: Path, orientation: int) -> None:
    source = data_set(tmp_path, orientation, width=60, height=100)
    for option in (None, "upright", "stored"):
        dataset = open_folder(source, "train", exif_boxes=option)
        assert check_images(dataset, workers=1) == dataset.faults == []
        assert dataset[0].boxes.tolist() == [list(BOX)]


@pytest.mark.contract("6.11")
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_size_that_is_stored_stops_the_check_unless_the_boxes_are_to_be_turned(
    tmp_path: Path, orientation: int
) -> None:
    (fault,) = check_images(open_folder(data_set(tmp_path, orientation), "train"), workers=1)
    assert fault.kind == "image of another size"
    assert "if its boxes were drawn on the image as it is stored, add --exif-boxes stored" in fault.remedy


@pytest.mark.contract("6.11")
@pytest.mark.parametrize(
    ("orientation", "size"), [(2, (100, 60)), (3, (100, 60)), (4, (100, 60)), *((one, (60, 60)) for one in range(2, 9))]
)
def test_a_size_that_does_not_tell_causes_a_warning_until_the_user_says(
    tmp_path: Path, orientation: int, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    source = data_set(tmp_path, orientation, size)
    (fault,) = check_images(open_folder(source, "train"), workers=1)
    assert fault.warning
    assert fault.what.startswith("EXIF data turns 1 of 1 images without a size that shows whether the boxes were drawn")
    open_checked(source, "train", workers=1)
    assert "--exif-boxes stored to turn the boxes" in capsys.readouterr().err
    assert check_images(open_folder(source, "train", exif_boxes="upright"), workers=1) == []
    assert open_dataset(source, "train", exif_boxes="upright")[0].boxes.tolist() == [list(BOX)]
    sample = open_dataset(source, "train", exif_boxes="stored")[0]
    assert sample.boxes.tolist() == [white_box(sample.image)] == [list(turned_box(BOX, *size, orientation))]
    turning = open_folder(source, "train", exif_boxes="stored")
    assert [fault.what for fault in turning.faults] == [
        "the boxes of 1 of 1 images are turned with the image, because of --exif-boxes stored"
    ]


def test_a_size_from_the_file_does_not_tell(tmp_path: Path) -> None:
    write_turned(tmp_path / "a.png", 6)
    image = AnnotatedImage("a.png", tmp_path / "a.png", 100, 60, "here", [Annotation("here", "object", "", BOX, 0)],
                           size_from_file=True)  # fmt: skip
    upright = turned(image)
    assert (upright.height, upright.width) == (100, 60)
    assert upright.annotations[0].box == UPRIGHT[6]


def test_images_without_boxes_cause_no_warning(tmp_path: Path) -> None:
    write_turned(tmp_path / "a.png", 3)
    source = write_coco_folder(tmp_path, [image_entry(1, "a.png")], [])
    assert check_images(open_folder(source, "train"), workers=1) == []
