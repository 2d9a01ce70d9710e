"""The size in a file's header is the size of the upright image that decoding gives."""

from pathlib import Path

import pytest
from PIL import Image

from faster_rcnn.data.image_sizes import upright_size, upright_sizes
from service.images import formats
from service.images.decode import upright

ORIENTATION = 0x0112  # EXIF


@pytest.fixture(autouse=True)
def all_formats():
    before = formats.accepted()
    formats.accept_all()
    yield
    formats.accept(before)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_the_size_in_the_header_is_that_of_the_decoded_image(tmp_path: Path, name: str, orientation: int) -> None:
    if name not in formats.accepted():
        pytest.skip(f"the library for {name} is not installed")
    file, exif = tmp_path / "image", Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", (40, 20)).save(file, name, exif=exif)
    assert upright_size(file) == upright(file.read_bytes()).size


def test_a_file_without_a_size_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image")
    Image.new("L", (3, 2)).save(tmp_path / "good.png")
    assert upright_sizes([tmp_path / "text", tmp_path / "good.png", tmp_path / "none"]) == [
        "it is not an image that can be read",
        (3, 2),
        "No such file or directory",
    ]
