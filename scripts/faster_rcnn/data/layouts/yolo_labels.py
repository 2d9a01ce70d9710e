"""YOLO's label files: a text file for each image, with one object per line.

A line is a class number and numbers from 0 to 1, shares of the image's width and height: the centre, width and height
of a box, or the corners of a polygon (docs.ultralytics.com/datasets/detect, …/segment, …/obb).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short

from faster_rcnn.data.annotations import Annotation
from faster_rcnn.data.faults import Fault

ROUNDING = 0.01  # by which a share may leave 0 to 1, for tools that round


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.  numbers: the label, from 0, of each number in the files;  names: by label.

    keypoints: whether key points follow each box.
    """

    numbers: Mapping[int, int]
    names: tuple[str, ...]
    keypoints: bool = False


def read_labels(file: Path, size: tuple[int, int], classes: Classes) -> tuple[list[Annotation], list[Fault]]:
    """The objects in a label file, and its faults.  size: width and height of the upright image."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return [], [Fault("malformed annotation", str(file), "it is not text in UTF-8", "write it again as text")]
    except OSError as error:
        return [], [Fault("malformed annotation", str(file), f"it cannot be read: {error.strerror}", "check it")]
    objects: list[Annotation] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _object(line, f"{file}:{number}", number, size, classes)
        if isinstance(found, Fault):
            faults.append(found)
        else:
            objects.append(found)
    return objects, faults


def _object(line: str, where: str, number: int, size: tuple[int, int], classes: Classes) -> Annotation | Fault:
    title = f"line {number}"
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        return _malformed(where, f"{short(line)} is not a class number and shares of the image")
    number_of_class, shares = values[0], values[1:]
    if classes.keypoints:
        shares = shares[:4]
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        what = f"it has {len(values)} numbers, not 5 of a box, nor a class and at least 3 corners"
        if len(values) == 6:
            what += "; a sixth number may be a confidence, which predictions have and annotations do not"
        return _malformed(where, what)
    if max(shares) > 1 + ROUNDING or min(shares) < -ROUNDING:
        return _malformed(where, f"{short(line)} has a number outside 0 to 1; give shares of the image, not pixels")
    label = classes.numbers.get(int(number_of_class)) if number_of_class == int(number_of_class) else None
    if label is None:
        what = f"{title}: class {number_of_class:g} is not one of the {len(classes.names)} that are named"
        return Fault("unknown class", where, what, "add its name, or remove the line")
    box = _corners(shares, *size)
    return Annotation(where, f"{title} ({classes.names[label]})", f"[{' '.join(line.split()[1:5])}]", box, label)


def _corners(shares: list[float], width: int, height: int) -> tuple[float, float, float, float]:
    if len(shares) == 4:
        x, y, w, h = shares
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    xs, ys = shares[::2], shares[1::2]
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height


def _malformed(where: str, what: str) -> Fault:
    return Fault("malformed annotation", where, what, "correct or remove the line")
