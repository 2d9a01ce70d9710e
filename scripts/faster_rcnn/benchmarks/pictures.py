"""The pictures that are sent."""

import io
from pathlib import Path

from PIL import Image


def open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def jpeg(picture: Image.Image, size: tuple[int, int]) -> bytes:
    """`picture` as a JPEG of width × height."""
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return file.getvalue()
