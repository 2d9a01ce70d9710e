"""Pascal VOC's format: an XML file for each image. `layouts/voc_files.py` finds the files.

Everingham et al., VOC 2007 development kit: pixels are counted from 1, and the corner pixels belong to the box. So the
box around a whole 640×480 image is 1, 1, 640, 480 in the file and 0, 0, 640, 480 here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as short

from lxml import etree

from faster_rcnn.data.annotations import (
    LONGEST_SIDE,
    AnnotatedImage,
    Annotation,
    ParsedSplit,
    is_file,
    leads_outside,
)
from faster_rcnn.data.box_checks import no_area_fault
from faster_rcnn.data.faults import Fault
from service.images.decode import ImageError, upright

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Listed:
    """An image of a split.  name: path of its annotation file without `.xml`;  where: what lists it, with the line."""

    name: str
    where: str


@dataclass(frozen=True)
class VOCFiles:
    """Where the files of a data set are.

    annotations: the folder that the names of annotation files are relative to;  listed: the images of each split;
    images: the image files that belong to a name, or that have a name as their stem;  images_are_in: for messages.
    """

    annotations: Path
    listed: Mapping[str, Sequence[Listed]]
    images: Mapping[str, Sequence[Path]]
    images_are_in: Path

    def document(self, name: str) -> Path:
        """The annotation file with this name; its extension may be in upper case."""
        lower, upper = self.annotations / f"{name}.xml", self.annotations / f"{name}.XML"
        return upper if is_file(upper) and not is_file(lower) else lower


def read_voc(files: VOCFiles, split: str) -> ParsedSplit:
    """Reads the annotations of a split.

    The classes are the names found in all splits together, in alphabetical order, so that all splits number them in
    the same way.

    Raises ValueError if no object has a class name.
    """
    stems = {entry.name for entries in files.listed.values() for entry in entries if not leads_outside(entry.name)}
    documents = {stem: read_document(files.document(stem)) for stem in sorted(stems)}
    names = {found.name for document in documents.values() for found in document.objects if found.name}
    labels = tuple(sorted(names))
    if not labels:
        raise ValueError(f"{files.annotations}: no object of any split has a class name; annotate some images")
    return _parse(files, split, documents, labels)


@dataclass(frozen=True)
class _Object:
    """An <object>.  name: "" if it has none;  corners: None if they are not four numbers; `fault` then says why."""

    line: int
    name: str
    corners: tuple[float, float, float, float] | None
    difficult: bool
    fault: str = ""


@dataclass(frozen=True)
class _Document:
    """An annotation file.  fault: why it cannot be read;  size: width and height, None if not stated."""

    file: Path
    fault: Fault | None = None
    filename: str = ""
    size: tuple[int, int] | None = None
    size_line: int = 1
    objects: tuple[_Object, ...] = ()


def read_document(file: Path) -> _Document:
    """Reads one XML file without resolving entities or fetching anything, because the file may be hostile."""
    if not is_file(file):
        remedy = "add it (without <object> if the image shows no object) or remove the name from the list"
        return _Document(file, Fault("missing annotation", str(file), "the file does not exist", remedy))
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    try:
        root = etree.fromstring(file.read_bytes(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        what = f"not XML: {error}"
        return _Document(file, Fault("malformed annotation", f"{file}:{line}", what, "correct or remove it"))
    if root.tag != "annotation":
        what = f"its outermost element is <{root.tag}>, not VOC's <annotation>"
        return _Document(file, Fault("malformed annotation", f"{file}:{root.sourceline}", what, "correct or remove it"))
    size = root.find("size")
    return _Document(
        file,
        filename=_text(root, "filename"),
        size=_size(root),
        size_line=(root if size is None else size).sourceline,
        objects=tuple(_object(element) for element in root.findall("object")),
    )


def _text(element: etree._Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float:
    """The number in `text`.  Raises ValueError if it is not a finite number."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def _size(root: etree._Element) -> tuple[int, int] | None:
    try:
        width, height = _number(_text(root, "size/width")), _number(_text(root, "size/height"))
    except ValueError:
        return None
    plausible = min(width, height) >= 1 and max(width, height) <= LONGEST_SIDE
    return (int(width), int(height)) if plausible else None


def _object(element: etree._Element) -> _Object:
    """Reads an <object>, but not the boxes of its <part>s."""
    line, name = element.sourceline, _text(element, "name")
    difficult = _text(element, "difficult") or "0"
    if difficult not in ("0", "1"):
        return _Object(line, name, None, False, f"<difficult> is {short(difficult)}, neither 0 nor 1")
    corners = []
    for corner in CORNERS:
        text = _text(element, f"bndbox/{corner}")
        try:
            corners.append(_number(text))
        except ValueError:
            found = f"is {short(text)}, not a number" if text else "is missing"
            return _Object(line, name, None, False, f"<{corner}> of its <bndbox> {found}")
    return _Object(line, name, (corners[0], corners[1], corners[2], corners[3]), difficult == "1")


def _parse(files: VOCFiles, split: str, documents: dict[str, _Document], labels: tuple[str, ...]) -> ParsedSplit:
    faults: list[Fault] = []
    images: list[AnnotatedImage] = []
    first_where: dict[str, str] = {}
    for entry in files.listed[split]:
        if leads_outside(entry.name):
            what = f"{short(entry.name)} points outside the folder"
            faults.append(Fault("name outside the folder", entry.where, what, "list names of files in the folder"))
        elif (first := first_where.setdefault(entry.name, entry.where)) != entry.where:
            what = f"{entry.name} is already listed at {first}"
            faults.append(Fault("image listed twice", entry.where, what, "remove one of the two"))
        elif (fault := documents[entry.name].fault) is not None:
            faults.append(fault)
        elif image := _image(files, entry, documents[entry.name], faults):
            images.append(image)
            _add_objects(image, documents[entry.name], labels, faults)
    return ParsedSplit(f"voc:{files.annotations.parent}", split, labels, images, faults)


def _image(files: VOCFiles, entry: Listed, document: _Document, faults: list[Fault]) -> AnnotatedImage | None:
    """The image of an annotation file: the one with the same name, else the one that its <filename> names.

    If there is no such image, returns None and adds the reason to `faults`.
    """
    where = f"{document.file}:{document.size_line}"
    stated = PurePosixPath(document.filename.replace("\\", "/")).name  # some tools write a whole path
    candidates = files.images.get(entry.name) or [
        file for file in files.images.get(PurePosixPath(stated).stem, []) if file.name == stated
    ]
    if not candidates:
        what = f"no image {entry.name}.* in {files.images_are_in}" + (f", nor {short(stated)}" if stated else "")
        faults.append(Fault("missing image", str(document.file), what, f"add it or remove {entry.name} from the list"))
        return None
    path = next((file for file in candidates if file.name == stated), candidates[0])
    if len(candidates) > 1:
        what = f"{', '.join(file.name for file in candidates)} all have this name; {path.name} is used"
        faults.append(Fault("several images", str(document.file), what, "remove the others", warning=True))
    size, size_from_file = document.size, document.size is None
    if size is None:
        try:
            size = upright(path.read_bytes()).size
        except (ImageError, OSError) as error:
            why = error.fault if isinstance(error, ImageError) else error.strerror
            what = f"{path.name} cannot be read: {why}"
            faults.append(Fault("unreadable image", where, what, "replace it or remove it from the list"))
            return None
        what = f"the width and height of {path.name} are missing; the image's own, {size[0]}×{size[1]}, are used"
        faults.append(Fault("missing size", where, what, "add them", warning=True))
    return AnnotatedImage(path.name, path, size[1], size[0], where, size_from_file=size_from_file)


def _add_objects(image: AnnotatedImage, document: _Document, labels: tuple[str, ...], faults: list[Fault]) -> None:
    label_of = {name: label for label, name in enumerate(labels)}
    for number, found in enumerate(document.objects, 1):
        where, title = f"{document.file}:{found.line}", f"object {number} ({found.name or 'without name'})"
        if not found.name:
            faults.append(Fault("unknown class", where, f"{title} has no class name", "give it a class or remove it"))
            continue
        if found.corners is None:
            faults.append(Fault("malformed annotation", where, f"{title}: {found.fault}", "correct or remove it"))
            continue
        xmin, ymin, xmax, ymax = found.corners
        written = ", ".join(f"{corner} {value:g}" for corner, value in zip(CORNERS, found.corners, strict=True))
        box = (xmin - 1, ymin - 1, xmax, ymax)
        annotation = Annotation(where, title, written, box, label_of[found.name], difficult=found.difficult)
        # Strictly, equal corners describe one pixel; in practice, tools write them after an accidental click.
        if xmin >= xmax or ymin >= ymax:
            faults.append(no_area_fault(annotation, image.name))
        else:
            image.annotations.append(annotation)
