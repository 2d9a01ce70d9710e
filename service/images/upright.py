"""Turns a decoded image upright, converts it to RGB on white, and resizes it: a large one in strips, to save memory.

Pillow converts an image only as a whole, into a copy. A large image with transparency would so be in memory four times,
and some of Pillow's operations (`alpha_composite`, conversions of a palette) would stop all other Python threads for
half a second. In strips both stay small. The pixels are the same as without strips: every conversion treats each pixel
on its own, and the first pass of a resize treats each row, or each column, on its own.

W, H  the upright image;  w, h  after resizing;  a strip is a range of its rows, or of its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.depth import DeepImage

STRIP_PIXELS = 2**18  # few enough for short steps and little memory, many enough for little overhead
Box = tuple[float, float, float, float]
Part = tuple[int, int, int, int]  # left, top, right, bottom
Stored = Image.Image | DeepImage

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def swapped(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Converts a stored width and height to the upright ones, or the reverse."""
    width, height = size
    return (height, width) if orientation >= 5 else (width, height)


def rgb(image: Stored, orientation: int) -> Image.Image:
    """The stored `image`, upright, in mode RGB, on white where it is transparent."""
    if _is_small(image) or is_opaque(image, "RGB"):
        return _on_white(_turned(_in_plain_mode(image), orientation))
    whole = Image.new("RGB", swapped(image.size, orientation))
    for part in _rows(whole.size):
        whole.paste(_on_white(_part(image, orientation, part)), part)
    return whole


def resized(image: Stored, orientation: int, size: tuple[int, int], box: Box) -> Image.Image:
    """The part `box` of the upright image, resized to `size` by Pillow's antialiasing filter, in mode RGB on white."""
    in_one_piece = orientation not in TRANSPOSE and is_opaque(image, "L", "RGB")
    if in_one_piece or _is_small(image):
        plain = _turned(_in_plain_mode(image), orientation)
        return _on_white(plain.resize(size, Image.Resampling.BILINEAR, box=box))
    whole = swapped(image.size, orientation)
    if vertical_first(whole, size):
        between = _resized_in_strips(_columns(whole), image, orientation, (whole[0], size[1]), (0, box[1], 0, box[3]))
        result = between.resize(size, Image.Resampling.BILINEAR, box=(box[0], 0, box[2], size[1]))
    else:
        between = _resized_in_strips(_rows(whole), image, orientation, (size[0], whole[1]), (box[0], 0, box[2], 0))
        result = between.resize(size, Image.Resampling.BILINEAR, box=(0, box[1], size[0], box[3]))
    return _on_white(result.convert("RGBA") if result.mode == "RGBa" else result)


def vertical_first(whole: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether Pillow resizes columns before rows, when it resizes an image of size `whole` to `size` in one call."""
    (width, height), (w, h) = whole, size
    return height - h > max(0, 2 * (width - w))


def _resized_in_strips(
    strips: Iterator[Part], image: Stored, orientation: int, size: tuple[int, int], box: Box
) -> Image.Image:
    """The upright image resized along one axis to `size`. `box` counts along that axis only.

    Partly transparent pixels are returned in the mode RGBa, whose colours are multiplied by their alpha. Pillow's
    `resize` would convert to it and back, too.
    """
    left, upper, right, lower = box
    result: Image.Image | None = None
    for x0, y0, x1, y1 in strips:
        strip = _part(image, orientation, (x0, y0, x1, y1))
        if strip.mode == "RGBA":
            strip = strip.convert("RGBa")
        if result is None:
            result = Image.new(strip.mode, size)
        if right:
            strip = strip.resize((size[0], y1 - y0), Image.Resampling.BILINEAR, box=(left, 0, right, y1 - y0))
        else:
            strip = strip.resize((x1 - x0, size[1]), Image.Resampling.BILINEAR, box=(0, upper, x1 - x0, lower))
        result.paste(strip, (0, y0) if right else (x0, 0))
    assert result is not None
    return result


def rows_reader(image: Stored, orientation: int) -> Callable[[int, int], NDArray[np.uint8]]:
    """A function that returns rows `first` to `end` of the upright image as an array [rows, W, 3]."""
    if _is_small(image):
        whole = np.asarray(rgb(image, orientation))
        return lambda first, end: whole[first:end]
    width = swapped(image.size, orientation)[0]
    return lambda first, end: np.asarray(_on_white(_part(image, orientation, (0, first, width, end))))


def pixels(image: Stored, orientation: int) -> NDArray[np.uint8]:
    """The upright image at its own size as an array [H, W, 3]. No other copy of all of it is made on the way."""
    if _is_small(image):
        return np.asarray(rgb(image, orientation))
    width, height = swapped(image.size, orientation)
    whole = np.empty((height, width, 3), np.uint8)
    read = rows_reader(image, orientation)
    for _, top, _, bottom in _rows((width, height)):
        whole[top:bottom] = read(top, bottom)
    return whole


def _is_small(image: Stored) -> bool:
    return image.width * image.height <= STRIP_PIXELS


def is_opaque(image: Stored, *modes: str) -> bool:
    """Whether `image` has one of `modes` and no transparent colour, so that it needs no conversion."""
    return image.mode in modes and not image.has_transparency_data


def _rows(size: tuple[int, int]) -> Iterator[Part]:
    """Strips of whole rows that cover an image of `size`."""
    width, height = size
    step = max(1, STRIP_PIXELS // width)
    return ((0, top, width, min(height, top + step)) for top in range(0, height, step))


def _columns(size: tuple[int, int]) -> Iterator[Part]:
    """Strips of whole columns that cover an image of `size`."""
    return ((left, top, right, bottom) for top, left, bottom, right in _rows((size[1], size[0])))


def _part(image: Stored, orientation: int, part: Part) -> Image.Image:
    """A part of the upright image, in a plain mode."""
    left, top, right, bottom = part
    if orientation >= 5:  # the upright rows are stored as columns
        left, top, right, bottom = top, left, bottom, right
    width, height = image.size
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return _turned(_in_plain_mode(image.crop((left, top, right, bottom))), orientation)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image


def _in_plain_mode(image: Stored) -> Image.Image:
    """`image` in a mode that can be turned and resized: L, RGB or RGBA."""
    if isinstance(image, DeepImage):
        return image.in_8_bits()
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """`image` in mode RGB, on a white background where it is transparent."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
