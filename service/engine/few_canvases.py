"""Chooses a few of the canvases that a model declares, for engines that need sessions of their own for each canvas.

Every further canvas saves padding, but takes memory and a part of the warm-up, and images on different canvases cannot
share a batch. Contract 1.2 says that an image's answer does not depend on its canvas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

from service.images.fit import Geometry, fit

Sides = tuple[int, int]  # height, width

MOST_CANVASES = 4
WORTH = 0.97  # a further canvas must lower the pixels of an average image to this share
# Shapes of photographs (longer side : shorter side) and how often they occur, upright as often as not: phones and
# compact cameras, cameras with interchangeable lenses, video, and square crops.
SHAPES = {(4, 3): 4, (3, 2): 3, (16, 9): 2, (1, 1): 1}
LARGEST_SEARCH = 20  # canvases of which all combinations are compared: 6195 of up to four


def few_canvases(geometry: Geometry) -> Geometry:
    """`geometry` with at most MOST_CANVASES of its canvases, such that every image fits on one of them.

    They are the ones with the least padding for the shapes of photographs.
    """
    useful = _useful(geometry)
    best: tuple[Sides, ...] | None = None
    for count in range(1, min(MOST_CANVASES, len(useful)) + 1):
        holding = [chosen for chosen in combinations(useful, count) if _holds_all(chosen, geometry)]
        if holding:
            found = min(holding, key=lambda chosen: _pixels(chosen, geometry))
            if best is None or _pixels(found, geometry) < WORTH * _pixels(best, geometry):
                best = found
    assert best  # no image exceeds the two extremes, and two canvases hold these
    return replace(geometry, canvases=best)


def padding(geometry: Geometry) -> float:
    """The share of an average photograph's canvas that it does not cover."""
    covered = sum(weight * size[0] * size[1] for size, weight in _photographs(geometry))
    return 1 - covered / _pixels(geometry.canvases, geometry)


def _useful(geometry: Geometry) -> list[Sides]:
    """The canvases among which an optimal choice is made, largest first.

    A chosen canvas is used by images of some shapes, so it is best the smallest one that holds all of these.
    If there are many, the one that is missed least is dropped until few are left.
    """
    sizes = [size for size, _ in _photographs(geometry)] + _extremes(geometry)
    boxes = {(max(a[0], b[0]), max(a[1], b[1])) for a in sizes for b in sizes}
    found = {min(holding, key=_area) for box in boxes if (holding := _holding(box, geometry.canvases))}
    useful = sorted(found, key=lambda canvas: (-_area(canvas), canvas))
    while len(useful) > LARGEST_SEARCH:
        without = [[*useful[:index], *useful[index + 1 :]] for index in range(len(useful))]
        useful = min((rest for rest in without if _holds_all(rest, geometry)), key=lambda rest: _pixels(rest, geometry))
    return useful


def _pixels(canvases: Sequence[Sides], geometry: Geometry) -> float:
    """The pixels of the canvases of photographs, weighted by their frequency."""
    return sum(
        weight * min(map(_area, _holding(size, canvases)), default=float("inf"))
        for size, weight in _photographs(geometry)
    )


def _photographs(geometry: Geometry) -> list[tuple[Sides, int]]:
    """The sizes of photographs after resizing, as (height, width), and how often each occurs."""
    found = []
    for (long, short), weight in SHAPES.items():
        for width, height in ((long, short), (short, long)):
            fitted = fit(1000 * width, 1000 * height, geometry)
            found.append(((fitted.height, fitted.width), weight))
    return found


def _extremes(geometry: Geometry) -> list[Sides]:
    """The two sizes of which no image exceeds both sides."""
    short = min(geometry.min_size, geometry.max_size)
    return [(short, geometry.max_size), (geometry.max_size, short)]


def _holds_all(canvases: Sequence[Sides], geometry: Geometry) -> bool:
    return all(_holding(size, canvases) for size in _extremes(geometry))


def _holding(size: Sides, canvases: Iterable[Sides]) -> list[Sides]:
    return [canvas for canvas in canvases if canvas[0] >= size[0] and canvas[1] >= size[1]]


def _area(canvas: Sides) -> int:
    return canvas[0] * canvas[1]
