import io

import numpy as np
import pytest
from PIL import Image

from service.images import drawing
from service.images.decode import MAX_PIXELS, ORIENTATION

LABELS = ["circle", "square"]


def answer(*boxes: list[float]) -> dict:
    return {
        "boxes": np.array(boxes, dtype=np.float64).reshape(-1, 4),
        "scores": np.linspace(0.9, 0.6, len(boxes)),
        "labels": [LABELS[index % 2] for index in range(len(boxes))],
    }


def draw(image: Image.Image, found: dict, encode, media_type: str = "image/png", **options: object) -> Image.Image:
    data = drawing.Drawing(encode(image, **options), MAX_PIXELS, found, LABELS, media_type).draw()
    return Image.open(io.BytesIO(data))


def test_a_boxs_outline_has_the_colour_of_its_label(encode):
    drawn = draw(Image.new("RGB", (400, 300), "white"), answer([100, 150, 300, 250]), encode)
    assert (drawn.format, drawn.size, drawn.mode) == ("PNG", (400, 300), "RGB")
    for point in ((100, 200), (300, 200), (200, 250)):
        assert drawn.getpixel(point) == drawing.colour_of(0)
    assert drawn.getpixel((200, 200)) == (255, 255, 255)
    assert drawn.getpixel((101, 149)) == drawing.colour_of(0)  # the tag above the box


def test_without_detections_the_image_is_unchanged(encode):
    image = Image.new("RGB", (50, 40), (1, 2, 3))
    assert draw(image, answer(), encode).tobytes() == image.tobytes()


def test_a_turned_image_is_drawn_upright(encode):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    assert draw(Image.new("RGB", (400, 300)), answer(), encode, "image/jpeg", exif=exif).size == (300, 400)


def test_boxes_at_the_edges_of_images_of_odd_shapes_are_drawn(encode):
    for size in ((1, 1), (2000, 1), (1, 2000), (30, 20)):
        drawn = draw(Image.new("RGB", size), answer([0, 0, *size], [0, 0, *size]), encode)
        assert drawn.size == size


def test_an_image_too_long_for_jpeg_raises_an_error_that_suggests_png(encode):
    with pytest.raises(drawing.SideTooLongError, match="image/png"):
        draw(Image.new("L", (66_000, 1)), answer(), encode, "image/jpeg")


def test_colours_are_distinct_and_dark_enough_for_white_letters():
    colours = [drawing.colour_of(index) for index in range(90)]
    assert len(set(colours)) == 90
    assert all(sum(colour) / 3 < 180 for colour in colours)
