"""The objects of one annotation file in Pascal VOC's format: everything below `<object>`.

Every box of an object is read. The boxes of its `<part>`s are not objects; they are counted. An object without a
`<bndbox>` has the box of its `<polygon>` or of its turned box (`<robndbox>`, as roLabelImg writes it).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from reprlib import repr as short

from lxml import etree

from faster_rcnn.data.repairs import Repair

CORNERS = ("xmin", "ymin", "xmax", "ymax")
Corners = tuple[float, float, float, float]

SEVERAL_BOXES = Repair(
    "several boxes in one object",
    "objects",
    "are further boxes of one <object>; each box counts as an object of its class",
    "write an <object> for each box",
)
PARTS = Repair(
    "parts", "objects", "have <part>s, whose boxes are left out", "write an <object> for each part to detect"
)
OUTLINE = Repair(
    "box from the outline", "objects", "have no <bndbox>; the box of their polygon or turned box is used", "add it"
)
DIFFICULT = Repair(
    "difficult in words",
    "objects",
    "have a <difficult> other than 0 and 1: true means 1, any other word 0",
    "write 0 or 1",
)
SWAPPED = Repair(
    "swapped corners",
    "objects",
    "have a corner with a max below its min; the two are swapped",
    "write the smaller one first",
)
AT_ZERO = Repair(
    "boxes that begin at 0",
    "objects",
    "begin at 0, although VOC counts pixels from 1; if the tool counts from 0, all boxes begin one pixel too early",
    "add 1 to xmin and ymin if an error of a pixel matters",
)
DELETED = Repair("deleted objects", "objects", "are marked as <deleted>, and left out", "remove them")
_FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
    **dict.fromkeys(("0", "0.0", "false", "no", "unspecified", "unknown", "none", "null", ""), False),
}


@dataclass(frozen=True)
class VOCObject:
    """One box of an <object>.

    title: how messages name it;  name: its class, "" if it has none;  corners: None if they are not four numbers;
    `fault` then says why;  repairs: what was understood otherwise than it is written, each with an example.
    """

    line: int
    title: str
    name: str = ""
    corners: Corners | None = None
    difficult: bool = False
    fault: str = ""
    repairs: tuple[tuple[Repair, str], ...] = ()
    deleted: bool = False


def text(element: etree._Element, path: str) -> str:
    """The text of the first element at a path, "" if there is none."""
    return (element.findtext(path) or "").strip()


def number(written: str) -> float:
    """The number in a text.  Raises ValueError if it is not a finite number."""
    if not math.isfinite(value := float(written)):
        raise ValueError(written)
    return value


def read_objects(root: etree._Element) -> tuple[VOCObject, ...]:
    """The boxes of all objects, at any depth; a <bndbox> outside any object is an object without a class."""
    found: list[VOCObject] = []
    inside: set[etree._Element] = set()
    for place, element in enumerate(root.iter("object"), 1):
        inside.update(element.iter("bndbox"))
        found += _boxes(element, place)
    outside = [element for element in root.iter("bndbox") if element not in inside]
    return (*found, *(VOCObject(element.sourceline, "a <bndbox> outside any <object>") for element in outside))


def _boxes(element: etree._Element, place: int) -> Iterator[VOCObject]:
    names = {(one.text or "").strip() for one in element.findall("name")} - {""}
    name = names.pop() if len(names) == 1 else ""
    title = f"object {place} ({name or 'without name'})"
    if names:
        yield VOCObject(element.sourceline, title, fault=f"it has several names: {', '.join(sorted(names))}")
        return
    if text(element, "deleted") == "1":
        yield VOCObject(element.sourceline, title, name, repairs=((DELETED, title),), deleted=True)
        return
    repairs = [(PARTS, title)] if element.find("part") is not None else []
    written = text(element, "difficult")
    if (difficult := _FLAGS.get(written.lower())) is None:
        fault = f"<difficult> is {short(written)}, neither 0 nor 1"
        yield VOCObject(element.sourceline, title, name, fault=fault)
        return
    if written not in ("0", "1") and element.find("difficult") is not None:
        repairs.append((DIFFICULT, f"{title}, {short(written)}"))
    boxes = element.findall("bndbox")
    for number_of_box, box in enumerate(boxes or [element], 1):
        further = number_of_box > 1
        own = [*repairs, (SEVERAL_BOXES, title)] if further else repairs
        of_box = f"object {place}, box {number_of_box} ({name or 'without name'})" if further else title
        line = box.sourceline if further else element.sourceline
        try:
            corners, more = _corners(box) if boxes else _corners_of_outline(element)
        except ValueError as error:
            yield VOCObject(line, of_box, name, fault=str(error))
            continue
        own = [*own, *((repair, of_box) for repair in more)]
        yield VOCObject(line, of_box, name, corners, difficult, repairs=tuple(own))


def _corners(box: etree._Element) -> tuple[Corners, list[Repair]]:
    """The corners of a <bndbox>.  Raises ValueError, with a clause, if they are not four numbers."""
    values = []
    for corner in CORNERS:
        written = text(box, corner)
        try:
            values.append(number(written))
        except ValueError:
            found = f"is {short(written)}, not a number" if written else "is missing"
            raise ValueError(f"<{corner}> of its <bndbox> {found}") from None
    xmin, ymin, xmax, ymax = values
    return (xmin, ymin, xmax, ymax), []


def _corners_of_outline(element: etree._Element) -> tuple[Corners, list[Repair]]:
    points = _turned_box(element) if element.find("robndbox") is not None else _polygon(element)
    if not points:
        raise ValueError("it has neither a <bndbox> nor a <polygon>")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return (min(xs), min(ys), max(xs), max(ys)), [OUTLINE]


def _polygon(element: etree._Element) -> list[tuple[float, float]]:
    """The points of <polygon>: `<x1>`, `<y1>`, `<x2>`, … (Roboflow), or `<pt>` or `<point>` with `<x>` and `<y>`."""
    points: list[tuple[float, float]] = []
    for polygon in element.findall("polygon"):
        pairs = [(point, "") for tag in ("pt", "point") for point in polygon.findall(tag)]
        numbered = [child.tag[1:] for child in polygon if child.tag[:1] == "x" and child.tag[1:].isdigit()]
        pairs += [(polygon, suffix) for suffix in numbered]
        for holder, suffix in pairs:
            try:
                points.append((number(text(holder, f"x{suffix}")), number(text(holder, f"y{suffix}"))))
            except ValueError:
                raise ValueError("a point of its <polygon> is not two numbers") from None
    return points


def _turned_box(element: etree._Element) -> list[tuple[float, float]]:
    """The corners of <robndbox>: a centre, a width, a height and an angle in radians, clockwise."""
    try:
        cx, cy, width, height, angle = (
            number(text(element, f"robndbox/{tag}")) for tag in ("cx", "cy", "w", "h", "angle")
        )
    except ValueError:
        raise ValueError("its <robndbox> is not five numbers: cx, cy, w, h and angle") from None
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        (cx + x * cos - y * sin, cy + x * sin + y * cos)
        for x, y in ((sx * width / 2, sy * height / 2) for sx in (-1, 1) for sy in (-1, 1))
    ]
