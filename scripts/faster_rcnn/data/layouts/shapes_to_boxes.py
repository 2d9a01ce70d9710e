"""Upright boxes around turned boxes, polygons and ellipses."""

import math

from faster_rcnn.data.repairs import Repair

BEYOND = Repair(
    "turned shape beyond the image",
    "shapes",
    "are turned or round, and the upright box around them extends beyond the image; it is clipped to the image",
    "move the shapes into their images if the clipped boxes are wrong",
)
Box = tuple[float, float, float, float]  # x1, y1, x2, y2


def box_around(points: list[tuple[float, float]]) -> Box:
    """The smallest upright box around points.  Raises ValueError if there are none."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def turned(points: list[tuple[float, float]], centre: tuple[float, float], degrees: float) -> list[tuple[float, float]]:
    """Points after a clockwise turn about a centre; y points down."""
    if not degrees:
        return points  # exactly, without rounding
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    from_centre = [(x - centre[0], y - centre[1]) for x, y in points]
    return [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in from_centre]


def clipped(box: Box, width: int, height: int) -> Box:
    """The part of a box inside an image; the box itself if that has no area."""
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else box


def ellipse_box(cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0) -> Box:
    """The upright box around an ellipse that is turned about its centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width, half_height = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height
