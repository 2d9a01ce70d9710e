"""The batch sizes for which an engine has sessions with fixed shapes, and the choice among them (a ladder of rungs).

A batch that is smaller than its session's rung is filled up with rows that hold no image. They cost as much as images,
so the choice goes by the time that a run of each rung takes, as measured when the engine is warmed up.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

MOST_IMAGES = 64  # a GPU is fully used by fewer, and each image waits for the others
PAYS = 0.8  # the rung in between must answer its images in this share of the time that the other rungs need


def rungs(full: int) -> tuple[int, ...]:
    """1, `full`, and one number in between if there is room for it. full: the images that the memory allows."""
    full = min(full, MOST_IMAGES)
    return tuple(sorted({1, round(math.sqrt(full)), full}))


def rung_pays(times: Mapping[int, float], rung: int) -> bool:
    """Whether a rung between two others is worth its sessions. times: seconds of a run, by rung."""
    lower = max(other for other in times if other < rung)
    higher = min(other for other in times if other > rung)
    others = min(times[higher], math.ceil(rung / lower) * times[lower])
    return times[rung] < PAYS * others


def images_to_take(times: Mapping[int, float], ready: int, most: int) -> int:
    """How many of `ready` images a run should take, so that the time per image is least; of equals the most.

    times  seconds of a run, by rung
    most   the most rows that a run may have, because of the memory that they take
    """
    if ready < 1:
        return 0
    lowest = min(times)
    allowed = [rung for rung in times if rung <= most] or [lowest]
    best, least = lowest, math.inf
    for images in sorted({min(rung, ready) for rung in allowed}):
        each = min(times[rung] for rung in allowed if rung >= images) / images
        if each <= least:
            best, least = images, each
    return best


def rung_for(images: int, ladder: Collection[int]) -> int:
    """The smallest rung that has room for `images`. Raises ValueError if none has."""
    holding = [rung for rung in ladder if rung >= images]
    if not holding:
        raise ValueError(f"{images} images in a batch, but the sessions take {max(ladder)} at most")
    return min(holding)


def split(images: int, ladder: Collection[int]) -> Iterator[int]:
    """Batches of `images` in all, none of them filled up, largest first."""
    while images > 0:
        part = max((rung for rung in ladder if rung <= images), default=images)
        yield part
        images -= part
