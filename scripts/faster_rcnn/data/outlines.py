"""Boxes and areas of outlines: COCO's `segmentation`, which holds polygons or a mask in run-length encoding (RLE).

The format is that of pycocotools: a polygon is a list x1, y1, x2, y2, …; a mask is `{"size": [height, width], "counts":
…}`, whose counts are a list of run lengths or their compressed text. Boxes are x1, y1, x2, y2 in pixels.
"""

import math
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from pycocotools import mask

from faster_rcnn.data.annotations import LONGEST_SIDE

Box = tuple[float, float, float, float]
DEEPEST = 3  # lists in lists that some tools write: polygons, each of points, each of x and y
MORE_FOLLOWS = 0x20  # in pycocotools' text, the bit of a character that says that its number continues


@dataclass(frozen=True)
class Polygons:
    """Polygons of one object.  parts: the coordinates of each, x and y in turn, at least two points."""

    parts: tuple[list[float], ...]

    def box(self) -> Box:
        """The smallest box that holds every point."""
        return (
            min(min(part[0::2]) for part in self.parts),
            min(min(part[1::2]) for part in self.parts),
            max(max(part[0::2]) for part in self.parts),
            max(max(part[1::2]) for part in self.parts),
        )

    def area(self) -> float:
        """The sum of the parts' areas by the shoelace formula."""
        return sum(map(_shoelace, self.parts))


@dataclass(frozen=True)
class Mask:
    """A mask in pycocotools' compressed form.  height, width: its size, which is that of the image."""

    height: int
    width: int
    counts: bytes

    def box(self) -> Box:
        """The smallest box that holds every pixel of the mask."""
        x, y, width, height = mask.toBbox(self._encoded()).tolist()
        return x, y, x + width, y + height

    def area(self) -> float:
        """The number of its pixels."""
        return float(mask.area(self._encoded()))

    def _encoded(self) -> dict[str, Any]:
        return {"size": [self.height, self.width], "counts": self.counts}


Outline = Polygons | Mask


def read_outline(written: Any) -> Outline | None:
    """The outline in a `segmentation`; None if there is none: null, or lists without any number.

    Raises ValueError, with a clause about the segmentation, if it is neither polygons nor a mask.
    """
    if written is None:
        return None
    if isinstance(written, dict):
        return _mask(written)
    if not isinstance(written, list):
        raise ValueError(f"is {short(written)}, neither polygons nor run lengths")
    parts = tuple(part for part in _parts(written) if part)
    return Polygons(parts) if parts else None


def _parts(written: list[Any], depth: int = 1) -> list[list[float]]:
    """The polygons in nested lists: `[[x, y, x, y, …], …]`, but also `[x, y, …]` and points that are lists of two."""
    types = set(map(type, written))  # much faster than asking for each number
    if list not in types:
        return [_coordinates(written)]
    if len(types) > 1:
        raise ValueError(f"is {short(written)}, a list of numbers and lists")
    if all(len(one) == 2 and not isinstance(one[0], list) for one in written):
        return [_coordinates([value for point in written for value in point])]
    if depth == DEEPEST:
        raise ValueError(f"is {short(written)}, lists in lists that are nested too deeply")
    return [part for one in written for part in _parts(one, depth + 1)]


def _coordinates(written: list[Any]) -> list[float]:
    values = written
    try:
        finite = all(map(math.isfinite, written))
    except TypeError:  # some are text, or no numbers at all
        values, finite = [number(value) for value in written], True
    except OverflowError:  # an integer that is too large for a float
        finite = False
    if not finite:
        raise ValueError(f"is {short(written)}, which has a coordinate that is not finite")
    if len(values) % 2 or len(values) == 2:
        raise ValueError(f"is {short(written)}: {len(values)} numbers are not the x and y of several points")
    return values


def number(written: Any) -> float:
    """The number that is written, also as text.  Raises ValueError, with a clause, if it is not a finite number."""
    if isinstance(written, bool) or not isinstance(written, int | float | str):
        raise ValueError(f"is {short(written)}, not a number")
    try:
        value = float(written)
    except (ValueError, OverflowError):
        raise ValueError(f"is {short(written)}, not a number that can be used") from None
    if not math.isfinite(value):
        raise ValueError(f"is {short(written)}, not a finite number")
    return value


def _mask(written: dict[str, Any]) -> Mask:
    """Checks everything that pycocotools' C code takes for granted."""
    size, counts = written.get("size"), written.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_side, size))):
        raise ValueError(f"has the size {short(size)}, not a height and a width")
    height, width = size
    if height * width >= 2**32:  # pycocotools counts in 32 bits
        raise ValueError(f"is a mask of {height}×{width} pixels, which is too large")
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != height * width:
            raise ValueError(f"has run lengths that do not add up to {height}×{width} pixels")
        encoded = mask.frPyObjects({"size": size, "counts": counts}, height, width)
        return Mask(height, width, encoded["counts"])
    if not isinstance(counts, str):
        raise ValueError(f"has the counts {short(counts)}, neither run lengths nor their compressed text")
    characters = counts.encode("utf-8")
    if characters.translate(None, delete=_ALPHABET) or (characters and (characters[-1] - 48) & MORE_FOLLOWS):
        raise ValueError(f"has the counts {short(counts)}, which are not compressed run lengths")
    found = Mask(height, width, characters)
    if _pixels(characters) != height * width:
        raise ValueError(f"has compressed run lengths that do not add up to {height}×{width} pixels")
    return found


_ALPHABET = bytes(range(48, 48 + 64))


def _pixels(characters: bytes) -> int:
    """The sum of compressed run lengths, -1 if one is negative.

    Each number is written in groups of five bits, the lowest first, with its sign in the last group; from the fourth
    on, it is the difference from the number two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in characters:
        group = character - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if group & MORE_FOLLOWS:
            continue
        if group & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0 or shift > 35:
            return -1
        value = shift = 0
    return sum(runs)


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LONGEST_SIDE


def _shoelace(part: list[float]) -> float:
    xs, ys = part[0::2], part[1::2]
    ahead_xs, ahead_ys = xs[1:] + xs[:1], ys[1:] + ys[:1]
    crossed = (x * ahead_y - ahead_x * y for x, y, ahead_x, ahead_y in zip(xs, ys, ahead_xs, ahead_ys, strict=True))
    return abs(sum(crossed)) / 2
