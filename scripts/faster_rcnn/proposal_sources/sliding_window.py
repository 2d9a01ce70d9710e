"""Sliding windows: a grid of boxes that depends only on the size of an image, not on its content.

Ren et al. 2015 (section 4.1, "one-stage detection vs. two-stage proposal + detection") compare the RPN with dense
windows of three scales and three aspect ratios. This module uses four scales: 1/8, 1/4, 1/2 and 1 times the image's
shorter side. The paper's three scales (128, 256 and 512 pixels, on images with a shorter side of 600) suit VOC's large
objects. With 2000 windows they cover only two thirds of the objects of `shapes` at an IoU of 0.5; the four scales used
here cover nearly all.

H and W are the height and width of the image, P is the number of windows. Boxes are x1, y1, x2, y2 in pixels of the
image.
"""

from itertools import product

import numpy as np
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, Regions, ranked

SCALES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # square root of a window's area, relative to the image's shorter side
RATIOS = (0.5, 1.0, 2.0)  # height / width

FEWEST = 4 * len(SCALES) * len(RATIOS)  # one window of each shape in each corner
FINEST = 0.02  # smallest step between windows, as a share of their sides

# Sorting the places of a grid by the fractional part of x · 0.7549 + y · 0.5698 (powers of the plastic number, the
# golden ratio's counterpart in two dimensions) spreads the first n places evenly, for every n.
SPREAD = (0.7548776662466927, 0.5698402909980532)


def sliding_windows(height: int, width: int, limit: int = LIMIT) -> np.ndarray:
    """Windows that lie inside an H × W image and cover it evenly.  Returns float32 [P, 4] with P <= `limit`.

    Windows of every shape are placed at the same step relative to their sides, the smallest step that keeps the number
    of windows within the limit. Shapes alternate in the result, so its first n windows cover the whole image too. A
    shape larger than the image is cut to the image's sides. Raises ValueError if the limit is below FEWEST.
    """
    if limit < FEWEST:
        raise ValueError(f"{limit} windows are too few to cover an image; allow at least {FEWEST}")
    shapes = _shapes(height, width)
    step = _step(height, width, shapes, limit)
    grids = [_grid(height, width, *shape, step) for shape in shapes]
    turns = np.concatenate([np.arange(len(grid)) for grid in grids])
    return np.concatenate(grids)[np.argsort(turns, kind="stable")].astype(np.float32)


def sliding_window_table(dataset: Dataset, limit: int = LIMIT) -> ProposalTable:
    """The windows of the images of a data set."""
    by_size: dict[tuple[int, int], Regions] = {}
    table = {}
    for index in tqdm(range(len(dataset)), desc="sliding windows", unit="image", leave=False):
        size = dataset.size(index)
        if size not in by_size:
            by_size[size] = ranked(sliding_windows(*size, limit))
        table[dataset.name(index)] = by_size[size]
    scales, ratios = ", ".join(f"{one:g}" for one in SCALES), ", ".join(f"{one:g}" for one in RATIOS)
    return ProposalTable(table, f"sliding-window; scales {scales}; ratios {ratios}; limit {limit}")


def _shapes(height: int, width: int) -> list[tuple[float, float]]:
    """Heights and widths of the windows, without duplicates, because two shapes may become equal when they are cut."""
    shorter = min(height, width)
    sides = [
        (min(scale * shorter * ratio**0.5, height), min(scale * shorter / ratio**0.5, width))
        for scale, ratio in product(SCALES, RATIOS)
    ]
    return list(dict.fromkeys(sides))


def _places(length: int, side: float, step: float) -> int:
    """The number of windows with this side that cover a length if consecutive ones are at most `step` sides apart."""
    return 1 + int(np.ceil((length - side) / (step * side) - 1e-9))


def _step(height: int, width: int, shapes: list[tuple[float, float]], limit: int) -> float:
    def fits(step: float) -> bool:
        return sum(_places(height, h, step) * _places(width, w, step) for h, w in shapes) <= limit

    low, high = FINEST, 2 * FINEST
    while not fits(high):
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _grid(height: int, width: int, h: float, w: float, step: float) -> np.ndarray:
    """The windows [P, 4] of one shape, in an order that spreads the first ones evenly over the image."""
    rows, columns = _places(height, h, step), _places(width, w, step)
    y, x = (place.ravel() for place in np.mgrid[:rows, :columns])
    order = np.argsort((x * SPREAD[0] + y * SPREAD[1] + 0.5) % 1, kind="stable")
    top = (y * ((height - h) / max(rows - 1, 1)))[order]
    left = (x * ((width - w) / max(columns - 1, 1)))[order]
    return np.stack([left, top, left + w, top + h], axis=1)
