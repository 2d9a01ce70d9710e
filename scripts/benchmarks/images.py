"""Images from files, and as JPEGs of a given size."""

import io
from pathlib import Path

from PIL import Image


def open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    """`image` as a JPEG of width × height."""
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return file.getvalue()
