"""Sizes of images from the headers of their files, for annotations that do not state them."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from faster_rcnn.data.repairs import Repair
from service.images import formats
from service.images.decode import orientation_of
from service.images.upright import swapped

_THREADS = 16  # they wait for the disk, or for a network's

NO_SIZE = Repair(
    "missing size",
    "images",
    "have no width and height that can be used; the sizes of their files are used",
    "add them, so that an image that was replaced can be noticed",
)


def upright_sizes(files: Iterable[Path]) -> list[tuple[int, int] | str]:
    """Width and height of each upright image, or why they cannot be read. Only headers are read, in threads."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(_size_or_reason, files))


def _size_or_reason(file: Path) -> tuple[int, int] | str:
    try:
        return upright_size(file)
    except OSError as error:
        return error.strerror or "the file cannot be read"
    except ValueError as error:
        return str(error)


def upright_size(file: Path) -> tuple[int, int]:
    """Width and height of the upright image; only its header is read.

    Raises ValueError, with the reason, if it has none that can be read; OSError if the file cannot be read.
    """
    try:
        with Image.open(file, formats=formats.accepted()) as image:
            if image.format == "TIFF":  # Pillow turns its size already
                return image.size
            # A PNG that has no EXIF data before its pixels would be decoded to look for some after them.
            known = image.format != "PNG" or any("exif" in str(name) for name in image.info)
            return swapped(image.size, orientation_of(image) if known or _ends_with_exif(file) else 1)
    except UnidentifiedImageError as error:
        raise ValueError("it is not an image that can be read") from error
    except (Image.DecompressionBombError, SyntaxError, ValueError, TypeError, IndexError) as error:
        raise ValueError("its header is damaged, or states an impossible size") from error


def _ends_with_exif(png: Path) -> bool:
    """Whether a PNG has a chunk of EXIF data, found by stepping from one chunk's head to the next."""
    with png.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] == b"eXIf":
                return True
            file.seek(int.from_bytes(head[:4]) + 4, 1)
    return False
