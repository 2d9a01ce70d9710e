"""Images with more than 8 bits per sample: their values, and how they become the 8 bits that a model takes.

*White* is the value that means white. A file of 16 bits does not state it: cameras with 10 or 12 bits often write their
values as they are, so that white is 1023 or 4095, and a program that takes 65,535 for white sees a nearly black image.
White is therefore a property of the model: training finds it for its data set, and `model.json` holds it. PNG's chunk
sBIT is not used, because by its definition the values have been scaled to all 16 bits already (W3C Recommendation,
third edition, section 11.3.2.3).

Pillow keeps all bits of a grey image, but only the high byte of a colour. The high bytes are enough where white is
65,535. Otherwise the file is decoded a second time with the bytes of each sample swapped, which gives the low bytes.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

Samples = NDArray[np.uint16] | NDArray[np.int32]
Box = tuple[int, int, int, int]

WHITE = 65_535  # the largest value of 16 bits
NEARLY_BLACK = 16  # an image whose largest value is less than this part of white is reported
_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR = 258, 262, 284  # tags of TIFF
GREY_AND_ALPHA = "LA;16B"  # Pillow decodes it to RGBA
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_BLOCK_PIXELS = 2**18  # read at a time to find the largest value, which takes up to 20 bytes for each


# Clauses that say what is wrong and what follows from it. The words are fixed, for programs.
RANGE_WARNINGS = {
    "nearly_black": "no value of this image with more than 8 bits per channel is above {largest:,}, but {white:,} is "
    "white, so it is nearly black",
    "beyond_white": "the values of this image with more than 8 bits per channel go up to {largest:,}, but {white:,} is "
    "white for the model, so all that is lighter has become white",
}


class RangeWarning(str):
    """A word of RANGE_WARNINGS. `clause` says what is wrong with one image, with its figures."""

    clause: str

    def __new__(cls, word: str, largest: int, white: int) -> RangeWarning:
        made = super().__new__(cls, word)
        made.clause = RANGE_WARNINGS[word].format(largest=largest, white=white)
        return made


class ValueRange(NamedTuple):
    """bits: of each sample in the file;  largest: the largest value of any colour (transparency does not count)."""

    bits: int
    largest: int


class UnreadableDepthError(ValueError):
    """All bits of the samples would be needed, and they are stored in a way that Pillow cannot read."""


class Opened(NamedTuple):
    """A file with samples of more than 8 bits whose header has been read.

    bits            of a sample
    low             the same file, to be decoded to the low bytes; None if they are not needed, or the image is grey
    grey_and_alpha  `low` will hold all bytes of grey and alpha
    """

    bits: int
    low: Image.Image | None
    grey_and_alpha: bool = False

    def pixels(self, decoded: Image.Image, white: int) -> DeepImage:
        """The samples, once the file has been decoded to `decoded`.  white: the value of a 16-bit sample."""
        if self.low is not None:
            self.low.load()
        if self.bits < 16:  # the file states its range
            white = min(white, 2**self.bits - 1)
        return DeepImage(decoded, self.low, white, self.grey_and_alpha, decoded.info.get("transparency"))


def opened(image: Image.Image, white: int) -> Opened | None:
    """What must be known before `image` is decoded. None if its samples have at most 8 bits.

    Raises UnreadableDepthError.
    """
    if _zero_is_white(image):  # Pillow ignores it, and returns the negative
        raise UnreadableDepthError("it is a TIFF image of more than 8 bits in which 0 means white")
    if _deep_planes(image) and (white != WHITE or _raw_mode(image) == "R"):  # Pillow then reads half of each plane
        raise UnreadableDepthError("it is a planar TIFF: its 16-bit channels are stored one after the other")
    bits = _bits(image)
    if bits <= 8:
        return None
    if not needs_low_bytes(image, white):
        return Opened(bits, None)
    return Opened(bits, _low_bytes(image), _raw_mode(image) == GREY_AND_ALPHA)


def needs_low_bytes(image: Image.Image, white: int) -> bool:
    """Whether `image`, which has been opened, must be decoded twice. A transparent colour is given with all bits."""
    wanted = white != WHITE or "transparency" in image.info
    return wanted and image.mode in ("RGB", "RGBA") and _bits(image) > 8


def loses_bits(image: Image.Image) -> bool:
    """Whether Pillow would decode only the high byte of the colours of `image`, which has been opened."""
    return image.mode in ("RGB", "RGBA") and _bits(image) > 8


def _bits(image: Image.Image) -> int:
    """The bits of a sample that are more than 8, as far as Pillow's decoder passes them on. 8 stands for 8 or fewer."""
    if image.mode in _GREY:
        return 12 if _raw_mode(image) == "I;12" else 16
    return 16 if image.mode in ("RGB", "RGBA") and ";16" in _raw_mode(image) else 8


def _raw_mode(image: Image.Image) -> str:
    """How the file stores a pixel, in Pillow's words, such as RGB;16B. "" if the image has been decoded already."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return ""
    arguments = image.tile[0].args
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def _zero_is_white(image: Image.Image) -> bool:
    """Whether a TIFF of more than 8 bits is stored as a negative, as films are scanned."""
    return image.format == "TIFF" and image.mode in _GREY and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def _deep_planes(image: Image.Image) -> bool:
    """Whether a TIFF stores channels of more than 8 bits in planes of their own."""
    if image.format != "TIFF" or image.mode not in ("RGB", "RGBA"):
        return False
    tags = getattr(image, "tag_v2", {})
    return tags.get(_PLANAR) == 2 and max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8


def _low_bytes(image: Image.Image) -> Image.Image:
    """The file of `image`, opened so that decoding it gives the low byte of each sample instead of the high one."""
    assert isinstance(image, ImageFile.ImageFile)
    assert isinstance(image.fp, io.BytesIO)
    data, mode = image.fp.getvalue(), _raw_mode(image)
    if image.format == "PNG" and mode == GREY_AND_ALPHA:
        return Image.open(io.BytesIO(_as_four_bytes(data)), formats=["PNG"])
    base, _, order = mode.rpartition(";16")
    if base not in ("RGB", "RGBA", "RGBX") or order not in _OTHER_ORDER:
        raise UnreadableDepthError(f"it stores its 16-bit samples in an unusual way ({image.format}, {mode})")
    again = Image.open(io.BytesIO(data), formats=[image.format or ""])
    assert isinstance(again, ImageFile.ImageFile)
    swapped = f"{base};16{_OTHER_ORDER[order]}"
    again.tile = [
        tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)
        for tile in again.tile
    ]
    return again


def _as_four_bytes(data: bytes) -> bytes:
    """A PNG of grey and alpha with 16 bits as one of four channels with 8 bits, whose rows have the same bytes.

    Pillow has no decoder for the low bytes of the former.
    """
    header = b"IHDR" + data[16:24] + bytes([8, 6]) + data[26:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@dataclass(frozen=True)
class DeepImage:
    """The stored samples of an image with more than 8 bits, which the functions of `upright` take instead of an image.

    high            a grey image with all bits, or the high bytes of a colour image
    low             the low bytes of a colour image; None if `high` is enough
    white           the value that means white
    grey_and_alpha  `low` holds all bytes: the high and the low byte of grey, and those of alpha
    transparent     the value, or the three values, of transparent pixels; None if there are none
    """

    high: Image.Image
    low: Image.Image | None = None
    white: int = WHITE
    grey_and_alpha: bool = False
    transparent: int | tuple[int, ...] | None = None

    mode = "more than 8 bits"  # no mode of Pillow, so that the pixels are always converted
    has_transparency_data = True

    @property
    def size(self) -> tuple[int, int]:
        return self.high.size

    @property
    def width(self) -> int:
        return self.high.width

    @property
    def height(self) -> int:
        return self.high.height

    @property
    def keeps_high_bytes(self) -> bool:
        """Whether the high bytes, which Pillow has decoded, are the answer."""
        return self.low is None and self.high.mode not in _GREY

    def crop(self, box: Box) -> DeepImage:
        return replace(self, high=self.high.crop(box), low=None if self.low is None else self.low.crop(box))

    def in_8_bits(self) -> Image.Image:
        """The image in mode L, RGB or RGBA. White, and every larger value, becomes 255; alpha has the same range."""
        bands = list(self.bands())
        levels = np.empty((self.height, self.width, len(bands)), np.uint8)
        for place, band in enumerate(bands):
            levels[..., place] = to_8_bits(band(), self.white)
        if self.transparent is not None and len(bands) in (1, 3):
            wanted = self.transparent if isinstance(self.transparent, tuple) else (self.transparent,)
            is_clear = np.logical_and.reduce([band() == value for band, value in zip(bands, wanted, strict=True)])
            levels = np.dstack([levels, np.where(is_clear, np.uint8(0), np.uint8(255))])
        image = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
        return image.convert("RGBA") if image.mode == "LA" else image

    def largest(self) -> int:
        """The largest value of any colour; if only its high byte is known, the largest that it can be."""
        if self.keeps_high_bytes:
            colours = self.high.getextrema()[:3]
            return max(int(extreme[1]) for extreme in colours) * 256 + 255  # type: ignore[index]
        found = [0]
        rows = max(1, _BLOCK_PIXELS // self.width)
        for top in range(0, self.height, rows):
            part = self.crop((0, top, self.width, min(self.height, top + rows)))
            bands = list(part.bands())
            found += [int(band().max()) for band in bands[: 1 if len(bands) < 3 else 3]]
        return max(found)

    def warnings(self) -> tuple[RangeWarning, ...]:
        """What does not fit if the values are compared with white."""
        largest = self.largest()
        if 0 < largest < self.white / NEARLY_BLACK:
            return (RangeWarning("nearly_black", largest, self.white),)
        if largest > self.white:
            return (RangeWarning("beyond_white", largest, self.white),)
        return ()

    def bands(self) -> Iterator[Callable[[], Samples]]:
        """A function for each channel that returns its values [H, W] with all bits, so that few are in memory."""
        high = np.asarray(self.high)
        if self.low is None:
            yield lambda: high
            return
        low = np.asarray(self.low)
        if self.grey_and_alpha:
            pairs = [(low[..., 0], low[..., 1]), (low[..., 2], low[..., 3])]
        else:
            pairs = [(high[..., place], low[..., place]) for place in range(len(self.high.getbands()))]
        for upper, lower in pairs:
            yield partial(_joined, upper, lower)


def _joined(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    values = high.astype(np.uint16)
    values <<= 8
    values |= low
    return values


def to_8_bits(values: Samples, white: int) -> NDArray[np.uint8]:
    """`values` as levels from 0 to 255. If `white` is 65,535, that is the high byte, as Pillow decodes colours."""
    if white == WHITE:
        return (values.clip(0, WHITE) >> 8).astype(np.uint8)
    levels = values.clip(0, white).astype(np.uint32)
    levels *= 255
    levels += white // 2
    levels //= white
    return levels.astype(np.uint8)
