"""What decoding tells about an image file, whatever the annotations say: it depends on the file's bytes alone."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from service.images import formats
from service.images.decode import ImageError, damage, stored, upright, value_range
from service.images.depth import ValueRange

VERSION = 2  # to be raised when this module changes


@dataclass(frozen=True)
class ImageFacts:
    """What was found in a file.

    digest: SHA-256 of its bytes;  fault: why it cannot be decoded, else "", and the other fields are set:
    width, height: of the upright image;  orientation: 1 to 8, as in EXIF;  format: as Pillow names it;
    damage: words of `integrity.WARNINGS`;  values: None if the image has at most 8 bits.
    """

    digest: str
    fault: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    format: str = ""
    damage: tuple[str, ...] = ()
    values: ValueRange | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return self.height, self.width

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rules() -> str:
    """Which rules make the facts now. Facts that other rules made are not used again."""
    return f"{VERSION}, Pillow {Image.__version__}, {' '.join(formats.accepted())}"


_ADAPTER = TypeAdapter(ImageFacts)


def facts_from_json(text: bytes | str) -> ImageFacts:
    """The inverse of `json.dumps` of `to_json`.  Raises ValueError."""
    return _ADAPTER.validate_json(text)


def examine(data: bytes) -> ImageFacts:
    """Decodes an image as training and the service do."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        height, width = np.asarray(upright(data)).shape[:2]
        header = stored(data)
        found, values = damage(data), value_range(data)
    except ImageError as error:
        return ImageFacts(digest, error.fault)
    kind = "JPEG" if header.format == "MPO" else header.format  # some cameras write several JPEGs into one file
    return ImageFacts(digest, "", width, height, header.orientation, kind, found, values)
