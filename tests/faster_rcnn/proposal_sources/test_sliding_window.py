"""Sliding windows: scales, ratios, order and coverage."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.proposal_sources.sliding_window import FEWEST, sliding_window_table, sliding_windows

SIDES = st.integers(1, 3000)


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, limit=st.integers(FEWEST, 4000))
@example(height=1, width=1, limit=2000)
@example(height=2, width=3000, limit=FEWEST)
def test_windows_lie_inside_any_image_and_keep_the_limit(height: int, width: int, limit: int) -> None:
    windows = sliding_windows(height, width, limit)
    assert windows.dtype == np.float32
    assert 0 < len(windows) <= limit
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= [width, height]).all()
    assert (windows[:, 2:] > windows[:, :2]).all()
    assert len(np.unique(windows, axis=0)) == len(windows)


def test_the_number_of_windows_is_close_to_the_limit() -> None:
    for height, width in ((480, 640), (600, 1000), (300, 300), (1000, 200)):
        assert 1800 < len(sliding_windows(height, width)) <= 2000


def test_windows_have_the_documented_scales_and_ratios() -> None:
    # A square image of 400: areas of 50², 100², 200² and 400². With the ratio 1:2 the sides of the area 50² are
    # 50 / √2 = 35.36 and 50 · √2 = 70.71; those of 400² are 282.84 and 565.69, cut to 400.
    windows = sliding_windows(400, 400)
    sides = {tuple(one) for one in (windows[:, 2:] - windows[:, :2]).round(1).tolist()}
    rounded = {(round(width, 1), round(height, 1)) for width, height in sides}
    small = {(50.0, 50.0), (35.4, 70.7), (70.7, 35.4)}
    middle = {(100.0, 100.0), (70.7, 141.4), (141.4, 70.7), (200.0, 200.0), (141.4, 282.8), (282.8, 141.4)}
    large = {(400.0, 400.0), (282.8, 400.0), (400.0, 282.8)}
    assert len(rounded) == 12
    for width, height in rounded:
        assert any(abs(width - w) < 0.11 and abs(height - h) < 0.11 for w, h in small | middle | large)


def test_every_corner_has_a_window_of_every_shape_that_fits() -> None:
    windows = sliding_windows(480, 640)
    small = windows[np.isclose(windows[:, 2] - windows[:, 0], 60) & np.isclose(windows[:, 3] - windows[:, 1], 60)]
    corners = {tuple(one) for one in small.tolist()}
    assert {(0, 0, 60, 60), (580, 0, 640, 60), (0, 420, 60, 480), (580, 420, 640, 480)} <= corners


@pytest.mark.parametrize("first", [100, 300, 1000, 2000])
def test_the_first_windows_cover_the_whole_image(first: int) -> None:
    windows = sliding_windows(480, 640)[:first]
    centres = (windows[:, :2] + windows[:, 2:]) / 2
    cells = centres // [640 / 3, 480 / 3]
    # Each of nine equal cells of the image has at least a third of its even share of the windows.
    counts = [int((cells == [x, y]).all(axis=1).sum()) for x in range(3) for y in range(3)]
    assert min(counts) > len(windows) / 9 / 3


def test_the_first_windows_have_every_shape() -> None:
    windows = sliding_windows(400, 400)[:12]
    sides = {tuple(one) for one in (windows[:, 2:] - windows[:, :2]).round().tolist()}
    assert len(sides) == 12


def test_a_limit_too_low_to_cover_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="47 windows are too few to cover an image; allow at least 48"):
        sliding_windows(480, 640, 47)


def test_the_table_depends_on_image_sizes_alone() -> None:
    dataset = Shapes("val", 3)
    table = sliding_window_table(dataset, 500)
    assert list(table) == ["val/0/0", "val/0/1", "val/0/2"]
    regions = table["val/0/1"]
    np.testing.assert_array_equal(regions.boxes, sliding_windows(*dataset.size(1), 500))
    assert (np.diff(regions.scores) < 0).all()
    assert regions.scores[0] == 1
    assert "limit 500" in table.made
