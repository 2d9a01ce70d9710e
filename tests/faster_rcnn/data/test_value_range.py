"""Images with more than 8 bits: how many there are, and how far their values reach."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from faster_rcnn.data.decode_check import check_images
from faster_rcnn.data.description import describe
from faster_rcnn.data.sources import open_folder
from faster_rcnn.data.value_range import ValueRange, report, value_range
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder


def png(largest: int, channels: int, bits: int = 16) -> bytes:
    """A PNG of this many bits with values from 0 to `largest`; of four channels the last is opaque."""
    pixels = np.linspace(0, largest, 100 * 60 * channels).round().reshape(60, 100, channels)
    if channels == 4:
        pixels[..., :3] = np.minimum(pixels[..., :3], largest)
        pixels[0, 0, :3], pixels[..., 3] = largest, 2**bits - 1
    _, data = cv2.imencode(".png", pixels.astype(np.uint16 if bits == 16 else np.uint8))
    return bytes(data.tobytes())


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("largest", [1023, 4095, 65535])
def test_the_largest_value_of_an_image_of_16_bits_is_found(channels: int, largest: int) -> None:
    assert value_range(png(largest, channels)) == ValueRange(16, largest)


def test_images_of_8_bits_and_broken_images_have_no_range() -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    for data in (png(255, 3, bits=8), jpeg.getvalue(), b"", b"\x89PNG\r\n\x1a\n", png(4095, 1)[:60]):
        assert value_range(data) is None


def test_the_report_says_how_many_images_are_deep_and_what_their_values_need() -> None:
    assert report([None, None], 2) is None
    assert report([ValueRange(16, 65535), None], 2) == ("1 of 2 images have 16 bits; their largest value is 65535")
    text = report([ValueRange(16, 1023), ValueRange(16, 4095)], 2)
    assert text is not None
    assert text.startswith(
        "warning: 2 of 2 images have 16 bits; their largest value is 4095, which needs 12 bits; 4095 must"
    )


def test_the_check_reports_the_range(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(4095, 1))
    dataset = open_folder(write_coco_folder(tmp_path, [image_entry(1, "a.png")], [annotation_entry(1, 1)]), "train")
    assert check_images(dataset, 1) == []
    assert "1 of 1 images have 16 bits; their largest value is 4095" in describe(dataset).splitlines()[-1]
