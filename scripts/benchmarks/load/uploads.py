"""The images that clients send: JPEGs of mixed sizes, no two requests with the same bytes.

A service may compute identical images in flight only once, so repeated images would not measure its speed. A comment
with a number in it turns the same pixels into a different file for every upload.
"""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.images import jpeg, open_rgb
from benchmarks.workers import Failed

# Width × height of the images that clients send in turn, as varied as photographs are.
SIZES = ((640, 480), (480, 640), (1280, 960), (800, 800), (1000, 500), (333, 500))
SUFFIXES = (".jpg", ".jpeg")
LONGER_SIDES = (320, 1600)  # pixels, of the photographs that are resized
SMALLEST, LARGEST, MOST_OBLONG = 32, 2000, 4.0  # pixels, and the ratio of the sides, of `any_sizes`

START = b"\xff\xd8"  # the first bytes of every JPEG
COMMENT = b"\xff\xfe\x00\x0a"  # the marker, and the length: two bytes for itself and eight for the number
NUMBER_BYTES = 8


@dataclass(frozen=True)
class Upload:
    """A JPEG without its first two bytes."""

    rest: bytes

    @property
    def size(self) -> int:
        """The number of bytes that `numbered` returns."""
        return len(START) + len(COMMENT) + NUMBER_BYTES + len(self.rest)

    def numbered(self, number: int) -> bytes:
        """The image with `number` in a comment."""
        return b"".join((START, COMMENT, number.to_bytes(NUMBER_BYTES, "big"), self.rest))


def upload(data: bytes) -> Upload:
    """Raises Failed if `data` is not a JPEG."""
    if not data.startswith(START + b"\xff"):
        raise Failed("only JPEGs can be sent, because each gets a comment; convert the others")
    return Upload(data[len(START) :])


def of_one_image(path: Path) -> list[Upload]:
    """The image in `path` at each of SIZES."""
    image = open_rgb(path)
    return [upload(jpeg(image, size)) for size in SIZES]


def of_folder(folder: Path, count: int, seed: int) -> list[Upload]:
    """At most `count` photographs of `folder` and its subfolders, drawn with `seed`.

    Every other one is sent as it is. The rest are resized to a longer side drawn from LONGER_SIDES, so that sizes are
    mixed even if all files have the same size. Raises Failed if the folder holds no JPEG.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise Failed(f"{folder} has no {' or '.join(SUFFIXES)} file; name a folder of photographs")
    rng = random.Random(seed)
    chosen = rng.sample(files, min(count, len(files)))
    return [upload(file.read_bytes() if n % 2 == 0 else _scaled(file, rng)) for n, file in enumerate(chosen)]


def any_sizes(path: Path, count: int, rng: random.Random) -> list[Upload]:
    """The image in `path` at `count` random sizes.

    The sides have SMALLEST to LARGEST pixels, and the longer one is at most MOST_OBLONG times the shorter one.
    """
    image = open_rgb(path)
    return [upload(jpeg(image, _any_size(rng))) for _ in range(count)]


def _any_size(rng: random.Random) -> tuple[int, int]:
    while True:
        width, height = rng.randint(SMALLEST, LARGEST), rng.randint(SMALLEST, LARGEST)
        if max(width, height) <= MOST_OBLONG * min(width, height):
            return width, height


def _scaled(file: Path, rng: random.Random) -> bytes:
    image = open_rgb(file)
    scale = rng.randint(*LONGER_SIDES) / max(image.size)
    return jpeg(image, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def describe(uploads: Sequence[Upload]) -> str:
    """The number of images, and their sizes."""
    sizes = set()
    for one in uploads:
        with Image.open(io.BytesIO(one.numbered(0))) as image:
            sizes.add(image.size)
    kilobytes = sum(one.size for one in uploads) / len(uploads) / 1000
    smallest, largest = (f"{w}×{h}" for w, h in (min(sizes, key=_area), max(sizes, key=_area)))
    return f"{len(uploads)} images of {len(sizes)} sizes, {smallest} to {largest}, {kilobytes:.0f} kB on average"


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
