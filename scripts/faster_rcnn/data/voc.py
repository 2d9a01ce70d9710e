"""Pascal VOC's format: an XML file for each image. `layouts/voc_files.py` finds the files.

Everingham et al., VOC 2007 development kit: pixels are counted from 1, and the corner pixels belong to the box. So the
box around a whole 640×480 image is 1, 1, 640, 480 in the file and 0, 0, 640, 480 here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from faster_rcnn.data.box_notations import Written, refuse_sizes
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.file_names import FileNames
from faster_rcnn.data.image_sizes import NO_SIZE, upright_sizes
from faster_rcnn.data.repairs import Repairs
from faster_rcnn.data.syntax_errors import xml_fault, xml_line
from faster_rcnn.data.voc_images import ImagesByStem, image_of
from faster_rcnn.data.voc_objects import AT_ZERO, CORNERS, SWAPPED, VOCObject, number, read_objects, text


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
    splits = files.listed.values()
    stems = {entry.name for entries in splits for entry in entries if not leads_outside(entry.name)}
    names = FileNames()
    documents = {stem: read_document(files.document(stem), names) for stem in sorted(stems)}
    objects = [found for document in documents.values() for found in document.objects if not found.deleted]
    labels = tuple(sorted({found.name for found in objects if found.name}))
    if not labels:
        raise ValueError(f"{files.annotations}: no object of any split has a class name; annotate some images")
    return _parse(files, split, documents, labels)


@dataclass(frozen=True)
class _Document:
    """An annotation file.  fault: why it cannot be read;  size: width and height, None if not stated."""

    file: Path
    fault: Fault | None = None
    filename: str = ""
    size: tuple[int, int] | None = None
    size_line: int = 1
    objects: tuple[VOCObject, ...] = ()


def read_document(file: Path, names: FileNames) -> _Document:
    """Reads one XML file without resolving entities or fetching anything, because the file may be hostile."""
    if not is_file(file) and len(alike := names.look_alikes(file, file.parent)) == 1:
        file = alike[0]
    if not is_file(file):
        remedy = "add it (without <object> if the image shows no object) or remove the name from the list"
        return _Document(file, Fault("missing annotation", str(file), "the file does not exist", remedy))
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    data = file.read_bytes()
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        where, what = f"{file}:{xml_line(error)}", f"not XML: {xml_fault(error, data)}"
        return _Document(file, Fault("malformed annotation", where, what, "correct or remove it"))
    for element in root.iter(etree.Element):  # some tools write tags in upper case, or in a namespace
        element.tag = element.tag.rpartition("}")[2].lower()
    if root.tag != "annotation":
        what = f"its outermost element is <{root.tag}>, not VOC's <annotation>"
        return _Document(file, Fault("malformed annotation", f"{file}:{root.sourceline}", what, "correct or remove it"))
    size = root.find("size")
    return _Document(
        file,
        filename=text(root, "filename"),
        size=_size(root),
        size_line=(root if size is None else size).sourceline,
        objects=read_objects(root),
    )


def _size(root: etree._Element) -> tuple[int, int] | None:
    try:
        width, height = number(text(root, "size/width")), number(text(root, "size/height"))
    except ValueError:
        return None
    plausible = min(width, height) >= 1 and max(width, height) <= LONGEST_SIDE
    return (int(width), int(height)) if plausible else None


def _parse(files: VOCFiles, split: str, documents: dict[str, _Document], labels: tuple[str, ...]) -> ParsedSplit:
    faults: list[Fault] = []
    repairs = Repairs(split)
    by_stem = ImagesByStem(files.images, files.images_are_in)
    found: list[tuple[_Document, Path]] = []
    for entry in _distinct(files.listed[split], faults):
        document = documents[entry.name]
        if document.fault is not None:
            faults.append(document.fault)
        elif path := image_of(entry.name, document.filename, document.file, by_stem, faults, repairs):
            found.append((document, path))
    images = []
    for document, image in _with_sizes(found, faults, repairs):
        images.append(image)
        _add_objects(image, document, labels, faults, repairs)
    _refuse_other_notations(files.annotations, found, images)
    objects = sum(len(document.objects) for document, _ in found)
    faults += repairs.faults({"images": len(files.listed[split]), "objects": objects})
    return ParsedSplit(f"voc:{files.annotations.parent}", split, labels, images, faults)


def _distinct(listed: Sequence[Listed], faults: list[Fault]) -> Iterator[Listed]:
    """The images that a list names, each once."""
    first_where: dict[str, str] = {}
    for entry in listed:
        if leads_outside(entry.name):
            what = f"{short(entry.name)} points outside the folder"
            faults.append(Fault("name outside the folder", entry.where, what, "list names of files in the folder"))
        elif (first := first_where.setdefault(entry.name, entry.where)) != entry.where:
            what = f"{entry.name} is already listed at {first}"
            faults.append(Fault("image listed twice", entry.where, what, "remove one of the two"))
        else:
            yield entry


def _with_sizes(
    found: Sequence[tuple[_Document, Path]], faults: list[Fault], repairs: Repairs
) -> Iterator[tuple[_Document, AnnotatedImage]]:
    """The images with their sizes, which come from the files where the annotations do not state them."""
    without = [path for document, path in found if document.size is None]
    sizes = dict(zip(without, upright_sizes(without), strict=True))
    for document, path in found:
        where = f"{document.file}:{document.size_line}"
        size = document.size or sizes[path]
        if isinstance(size, str):
            what = f"{path.name} cannot be read: {size}"
            faults.append(Fault("unreadable image", where, what, "replace it or remove it from the list"))
            continue
        if document.size is None:
            repairs.count(NO_SIZE, where, f"{path.name}, {size[0]}×{size[1]}")
        yield document, AnnotatedImage(path.name, path, size[1], size[0], where, size_from_file=document.size is None)


def _refuse_other_notations(
    annotations: Path, found: Sequence[tuple[_Document, Path]], images: Sequence[AnnotatedImage]
) -> None:
    sizes = {image.path: (image.width, image.height) for image in images}
    written = [
        (one.corners, sizes[path])
        for document, path in found
        for one in document.objects
        if one.corners is not None and path in sizes
    ]
    boxes = Written.of([corners for corners, _ in written], [size for _, size in written])
    refuse_sizes(str(annotations), boxes)


def _add_objects(
    image: AnnotatedImage, document: _Document, labels: tuple[str, ...], faults: list[Fault], repairs: Repairs
) -> None:
    label_of = {name: label for label, name in enumerate(labels)}
    for found in document.objects:
        where = f"{document.file}:{found.line}"
        for repair, example in found.repairs:
            repairs.count(repair, where, example)
        if found.deleted:
            continue
        if found.fault:
            faults.append(Fault("malformed annotation", where, f"{found.title}: {found.fault}", "correct or remove it"))
            continue
        if not found.name:
            what = f"{found.title} has no class name"
            faults.append(Fault("unknown class", where, what, "give it a class or remove it"))
            continue
        annotation = _annotation(found, where, label_of[found.name], repairs)
        x1, y1, x2, y2 = found.corners or (0.0, 0.0, 0.0, 0.0)
        # Strictly, equal corners describe one pixel; in practice, tools write them after an accidental click.
        if x1 == x2 or y1 == y2:
            faults.append(no_area_fault(annotation, image.name))
        else:
            image.annotations.append(annotation)


def _annotation(found: VOCObject, where: str, label: int, repairs: Repairs) -> Annotation:
    assert found.corners is not None  # its fault has been reported
    xmin, ymin, xmax, ymax = found.corners
    if xmin > xmax or ymin > ymax:
        repairs.count(SWAPPED, where, found.title)
        xmin, xmax, ymin, ymax = min(xmin, xmax), max(xmin, xmax), min(ymin, ymax), max(ymin, ymax)
    if 0 <= min(xmin, ymin) < 1:
        repairs.count(AT_ZERO, where, found.title)
    written = ", ".join(f"{corner} {value:g}" for corner, value in zip(CORNERS, found.corners, strict=True))
    box = (xmin - 1, ymin - 1, xmax, ymax)
    return Annotation(where, found.title, written, box, label, difficult=found.difficult)
