"""Boxes and areas of COCO's segmentations, compared with pycocotools."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask

from faster_rcnn.data.outlines import Mask, Polygons, read_outline

coordinates = st.floats(-1000, 1000) | st.integers(-1000, 1000)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=2, max_size=8)


@given(st.lists(polygons, min_size=1, max_size=3))
def test_the_box_of_polygons_is_the_range_of_their_points(parts: list[list[tuple[float, float]]]) -> None:
    xs, ys = [x for part in parts for x, _ in part], [y for part in parts for _, y in part]
    expected = (min(xs), min(ys), max(xs), max(ys))
    flat = [[value for point in part for value in point] for part in parts]
    pairs = [[list(point) for point in part] for part in parts]
    for written in (flat, pairs, [[str(value) for value in part] for part in flat]):
        outline = read_outline(written)
        assert outline is not None
        assert outline.box() == expected


@given(polygons)
def test_one_polygon_may_be_a_flat_list(points: list[tuple[float, float]]) -> None:
    outline = read_outline([value for point in points for value in point])
    assert outline == Polygons(([value for point in points for value in point],))


def test_areas_of_polygons() -> None:
    # A triangle with legs of 4 and 3 has the area 6, whatever its direction; a square of side 2 adds 4.
    for triangle in ([0, 0, 4, 0, 0, 3], [0, 3, 4, 0, 0, 0]):
        outline = read_outline([triangle, [10, 10, 12, 10, 12, 12, 10, 12]])
        assert outline is not None
        assert math.isclose(outline.area(), 6 + 4)


@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)))
def test_masks_have_the_box_and_area_that_pycocotools_finds(pixels: np.ndarray) -> None:
    encoded = mask.encode(np.asfortranarray(pixels))
    x, y, width, height = mask.toBbox(encoded).tolist()
    runs = [0]
    for before, value in zip([0, *pixels.T.ravel()], pixels.T.ravel(), strict=False):
        if value != before:
            runs.append(0)
        runs[-1] += 1
    size = list(pixels.shape)
    for counts in (encoded["counts"].decode(), runs):
        outline = read_outline({"size": size, "counts": counts})
        assert isinstance(outline, Mask)
        assert outline.box() == (x, y, x + width, y + height)
        assert outline.area() == pixels.sum()
    rows, columns = np.nonzero(pixels)
    if len(rows):
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("written", [None, [], [[]], [[], []]])
def test_lists_without_numbers_are_no_outline(written: Any) -> None:
    assert read_outline(written) is None


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("polygon", "is 'polygon', neither polygons nor run lengths"),
        ([[1, 2, 3]], "3 numbers are not the x and y of several points"),
        ([[1, 2]], "2 numbers are not"),
        ([[1, 2, 3, float("nan")]], "coordinate that is not finite"),
        ([[1, 2, 3, 10**400]], "coordinate that is not finite"),
        ([[1, 2, 3, "x"]], "is 'x', not a number"),
        ([[1, 2, 3, None]], "is None, not a number"),
        ([[1, 2, 3, 4], 5], "a list of numbers and lists"),
        ([{"x": 1, "y": 2}], "not a number"),
        ([[[[[1, 2, 3, 4]]]]], "nested too deeply"),
        ({"counts": "04", "size": [10**6, 10**6]}, "is a mask of 1000000×1000000 pixels, which is too large"),
        ({"counts": "04"}, "has the size None"),
        ({"counts": "04", "size": [0, 4]}, r"has the size \[0, 4\]"),
        ({"counts": [1, 2], "size": [2, 2]}, "run lengths that do not add up to 2×2 pixels"),
        ({"counts": [5, -1], "size": [2, 2]}, "run lengths that do not add up"),
        ({"counts": [4.0], "size": [2, 2]}, "run lengths that do not add up"),
        ({"counts": None, "size": [2, 2]}, "the counts None, neither run lengths"),
        ({"counts": "é", "size": [2, 2]}, "which are not compressed run lengths"),
        ({"counts": "o", "size": [2, 2]}, "which are not compressed run lengths"),  # says that more follows
        ({"counts": "03", "size": [2, 2]}, "compressed run lengths that do not add up to 2×2"),
        ({"counts": "?", "size": [2, 2]}, "do not add up"),  # the number -1
        ({"counts": "", "size": [2, 2]}, "do not add up"),
    ],
)
def test_what_is_neither_polygons_nor_a_mask_is_refused(written: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_outline(written)


@given(st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=12), st.integers(1, 9), st.integers(1, 9))
def test_no_text_of_counts_crashes_pycocotools(counts: str, height: int, width: int) -> None:
    try:
        outline = read_outline({"size": [height, width], "counts": counts})
    except ValueError:
        return
    assert outline is not None
    x1, y1, x2, y2 = outline.box()
    assert 0 <= x1 <= x2 <= width
    assert 0 <= y1 <= y2 <= height
