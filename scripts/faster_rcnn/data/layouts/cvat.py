"""CVAT's own format, "CVAT for images 1.1": `annotations.xml`, and the images in `images`.

The format: docs.cvat.ai/docs/dataset_management/formats/format-cvat. CVAT's exports in other formats are read like
those of other tools.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from reprlib import repr as short

from lxml import etree

from faster_rcnn.data.annotations import LONGEST_SIDE, AnnotatedImage, Annotation, ParsedSplit
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.layouts import split_names
from faster_rcnn.data.layouts.image_finder import ImageFinder
from faster_rcnn.data.layouts.layout import Family, Layout
from faster_rcnn.data.layouts.shapes_to_boxes import BEYOND, Box, box_around, clipped, ellipse_box, turned
from faster_rcnn.data.layouts.tree import Tree
from faster_rcnn.data.repairs import Repairs
from faster_rcnn.data.syntax_errors import xml_fault, xml_line

_MOST_FILES = 50  # XML files in a folder; more are VOC's
_NOT_BOXES = ("tag", "points", "skeleton", "track")


def find(tree: Tree) -> Layout | None:
    """CVAT's layout: an XML file whose outermost element is `<annotations>`."""
    paths = [tree.root / path for path in tree.files(".xml")]
    files = [path for path in paths if _is_cvat(path)] if len(paths) <= _MOST_FILES else []
    if not files:
        return None
    if len(files) > 1:
        named = ", ".join(file.relative_to(tree.root).as_posix() for file in files[:3])
        raise ValueError(f"{tree.root} holds several files of CVAT, {named}; name one of them")
    root = _root(files[0])
    if root.find("image") is None and root.find("track") is not None:
        raise ValueError(f"{files[0]}: CVAT for video; export the task again as CVAT for images 1.1, or as COCO 1.0")
    splits = {image.get("subset") or split_names.ALL for image in root.findall("image")}
    name = f"CVAT for images ({files[0].relative_to(tree.root).as_posix()})"
    return Layout(name, tree.root, {split: partial(_read, tree, files[0], split) for split in sorted(splits)})


def _is_cvat(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return b"<annotations" in opened.read(2000)
    except OSError:
        return False


def _root(file: Path) -> etree._Element:
    """The outermost element, read without resolving entities, because the file may be hostile."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    data = file.read_bytes()
    try:
        return etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        where, why = f"{file}:{xml_line(error)}", xml_fault(error, data)
        raise ValueError(f"{where}: not XML: {why}; export it again from CVAT") from error


def _read(tree: Tree, file: Path, split: str) -> ParsedSplit:
    """Raises ValueError if there are no classes."""
    root = _root(file)
    labels = _labels(root)
    if not labels:
        raise ValueError(f"{file}: it has no classes; annotate some images")
    label_of = {name: label for label, name in enumerate(labels)}
    finder = ImageFinder(tree)
    images: list[AnnotatedImage] = []
    faults: list[Fault] = []
    repairs = Repairs(split)
    for element in root.findall("image"):
        if (element.get("subset") or split_names.ALL) == split and (
            image := _image(element, file, split, finder, faults)
        ):
            images.append(image)
            _add_objects(image, element, file, label_of, faults, repairs)
    faults += [
        *finder.report(str(file), len(images)),
        *repairs.faults({"shapes": sum(len(image.annotations) for image in images)}),
    ]
    return ParsedSplit(f"cvat:{file}", split, labels, images, faults)


def _labels(root: etree._Element) -> tuple[str, ...]:
    """The classes in alphabetical order: those that the task defines, and those of its objects."""
    named = [label.findtext("name") or "" for label in root.iterfind("meta//labels/label")]
    used = [one.get("label", "") for image in root.findall("image") for one in image if one.tag not in _NOT_BOXES]
    return tuple(sorted({name.strip() for name in [*named, *used]} - {""}))


def _image(
    element: etree._Element, file: Path, split: str, finder: ImageFinder, faults: list[Fault]
) -> AnnotatedImage | None:
    where, name = f"{file}:{element.sourceline}", element.get("name", "")
    path = finder.find(name, None if split == split_names.ALL else split) if name else None
    if path is None:
        remedy = "put the images into the folder `images`, or export the task again with 'Save images'"
        faults.append(Fault("missing image", where, f"image {short(name)} is not in the folder", remedy))
        return None
    try:
        width, height = (int(element.get(side, "")) for side in ("width", "height"))
    except ValueError:
        width, height = 0, 0
    if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE):
        faults.append(Fault("malformed image", where, f"{name} has no width and height", "export it again from CVAT"))
        return None
    return AnnotatedImage(path.name, path, height, width, where)


def _add_objects(
    image: AnnotatedImage,
    element: etree._Element,
    file: Path,
    label_of: Mapping[str, int],
    faults: list[Fault],
    repairs: Repairs,
) -> None:
    for number, shape in enumerate(element, 1):
        where, name = f"{file}:{shape.sourceline}", (shape.get("label") or "").strip()
        title = f"{shape.tag} {number} ({name or 'without label'})"
        if shape.tag in ("points", "skeleton"):
            what = f"{title} in {image.name} has no box"
            faults.append(Fault("annotation without a box", where, what, "it is left out", warning=True))
            continue
        if shape.tag in _NOT_BOXES:
            continue
        try:
            box = _box(shape)
        except (KeyError, ValueError, TypeError):
            what = f"{title}: its coordinates are not numbers"
            faults.append(Fault("malformed annotation", where, what, "correct or remove it"))
            continue
        if name not in label_of:
            faults.append(Fault("unknown class", where, f"{title} has no label", "give it a label or remove it"))
            continue
        if _is_turned(shape) and (inside := clipped(box, image.width, image.height)) != box:
            repairs.count(BEYOND, where, f"{title} in {image.name}")
            box = inside
        written = f"[{', '.join(f'{value:g}' for value in box)}]"
        image.annotations.append(Annotation(where, title, written, box, label_of[name]))


def _is_turned(shape: etree._Element) -> bool:
    """Whether the upright box around a shape is larger than the shape itself."""
    return shape.tag == "ellipse" or float(shape.get("rotation") or 0) != 0


def _box(shape: etree._Element) -> Box:
    """The upright box around a shape.  Raises KeyError or ValueError if a coordinate is missing or not a number."""
    given = shape.attrib
    if shape.tag == "mask":
        left, top = float(given["left"]), float(given["top"])
        return _finite((left, top, left + float(given["width"]), top + float(given["height"])))
    turn = float(given.get("rotation", 0))
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (float(given[name]) for name in ("cx", "cy", "rx", "ry"))
        return _finite(ellipse_box(cx, cy, rx, ry, turn))
    if shape.tag == "box":
        x1, y1, x2, y2 = (float(given[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        return _finite(box_around(turned(corners, ((x1 + x2) / 2, (y1 + y2) / 2), turn)))
    if shape.tag == "cuboid":
        names = [name for name in given if name[:2] in ("xt", "xb")]
        return _finite(box_around([(float(given[name]), float(given[f"y{name[1:]}"])) for name in names]))
    pairs = [point.split(",") for point in given["points"].split(";") if point]
    return _finite(box_around([(float(x), float(y)) for x, y in pairs]))


def _finite(box: Box) -> Box:
    if not all(map(math.isfinite, box)):
        raise ValueError(box)
    return box


FAMILY = Family("cvat", "CVAT: annotations.xml", find)
