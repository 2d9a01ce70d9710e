"""The size of an image from its header, for annotations that do not state it."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from service.images.decode import FORMATS
from service.images.upright import swapped

_ORIENTATION = 0x0112  # EXIF


def upright_size(file: Path) -> tuple[int, int]:
    """Width and height of the upright image; only its header is read.

    Raises ValueError, with the reason, if it has none that can be read; OSError if the file cannot be read.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            # A PNG that does not tell its EXIF data before its pixels would be decoded for them.
            known = image.format != "PNG" or any("exif" in str(name) for name in image.info)
            return swapped(image.size, _orientation(image) if known else 1)
    except UnidentifiedImageError as error:
        raise ValueError("it is not an image that can be read") from error
    except (Image.DecompressionBombError, SyntaxError, ValueError, TypeError, IndexError) as error:
        raise ValueError("its header is damaged, or states an impossible size") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. A missing, broken or unknown value counts as 1."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the image can be decoded even if its EXIF block is broken
        return 1
    return value if value in range(1, 9) else 1
