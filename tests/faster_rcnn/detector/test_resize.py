"""Resizing of images before detection."""

import numpy as np
import pytest

from faster_rcnn.detector.resize import ResizeRule, resize_image


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((375, 500), (600, 800)),  # the shorter side 375 becomes 600: factor 1.6
        ((500, 375), (800, 600)),
        ((300, 600), (500, 1000)),  # factor 2 would make the longer side 1200, so the factor is 1000 / 600
        ((1, 1000), (1, 1000)),  # factor 1: the longer side is at its limit
        ((1, 5000), (1, 1000)),  # factor 0.2 would make the shorter side 0.2, but the minimum is 1
    ],
)
def test_the_shorter_side_becomes_600_unless_the_longer_would_exceed_1000(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    assert ResizeRule(600, 1000)(*size) == resized  # section 3.3 of the paper


def test_resizing_returns_the_image_and_the_factors_for_x_and_y() -> None:
    image = np.full((30, 41, 3), 7, np.uint8)
    resized, scale_x, scale_y = resize_image(image, ResizeRule(60, 100))
    assert resized.shape == (60, 82, 3)
    assert (scale_x, scale_y) == (82 / 41, 60 / 30)
    assert (resized == 7).all()
    assert resize_image(resized, ResizeRule(60, 100))[0] is resized  # it has that size already
