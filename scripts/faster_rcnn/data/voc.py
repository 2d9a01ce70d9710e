"""Pascal VOC's format: `Annotations/*.xml`, `JPEGImages` and the splits listed in `ImageSets/Main`.

Everingham et al., VOC 2007 development kit: pixels are counted from 1, and the corner pixels belong to the box. So the
box around a whole 640×480 image is 1, 1, 640, 480 in the file and 0, 0, 640, 480 here.
"""

import re
from collections.abc import Iterator, Sequence
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
from faster_rcnn.data.box_notations import Written, refuse_sizes
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.file_names import FileNames
from faster_rcnn.data.image_sizes import NO_SIZE, upright_sizes
from faster_rcnn.data.repairs import Repairs
from faster_rcnn.data.voc_images import ImagesByStem, image_of
from faster_rcnn.data.voc_objects import AT_ZERO, CORNERS, SWAPPED, VOCObject, number, read_objects, text

NAME_AND_FLAG = re.compile(r"(.*\S)\s+-?[01]")  # a line of a list of one class, as in the development kit


def read_voc(folder: Path, split: str) -> ParsedSplit:
    """Reads the annotations of a split.

    The classes are the names found in all splits together, in alphabetical order, so that all splits number them in
    the same way.

    Raises FileNotFoundError, listing the splits found, if `split` does not exist; ValueError if its list is empty or
    not text in UTF-8.
    """
    splits = voc_splits(folder)
    if split not in splits:
        found = ", ".join(splits) or "none"
        raise FileNotFoundError(
            f"{folder / 'ImageSets' / 'Main' / f'{split}.txt'} does not exist; voc:DIR needs JPEGImages, "
            f"Annotations and ImageSets/Main/<split>.txt (splits found: {found})"
        )
    listed = {name: _listed(folder, name) for name in splits}
    if not listed[split]:
        raise ValueError(f"{_list_file(folder, split)} lists no images; write one name per line")
    stems = {entry.name for entries in listed.values() for entry in entries if not leads_outside(entry.name)}
    names = FileNames()
    documents = {stem: read_document(folder, stem, names) for stem in sorted(stems)}
    objects = [found for document in documents.values() for found in document.objects if not found.deleted]
    labels = tuple(sorted({found.name for found in objects if found.name}))
    if not labels:
        raise ValueError(f"{folder / 'Annotations'}: no object of any split has a class name; annotate some images")
    return _parse(folder, split, listed[split], documents, labels)


def voc_splits(folder: Path) -> list[str]:
    """The splits of a folder, in alphabetical order.

    A file `<class>_<split>.txt` says which images show a class. It is not a split.
    """
    files = {file.stem: file for file in sorted((folder / "ImageSets" / "Main").glob("*.txt"))}

    def is_of_one_class(stem: str) -> bool:
        return any(stem.endswith(f"_{other}") for other in files) and _has_flags(files[stem])

    return [stem for stem in files if not is_of_one_class(stem)]


@dataclass(frozen=True)
class _Listed:
    """One line of a split's list.  where: file and line."""

    name: str
    where: str


@dataclass(frozen=True)
class _Document:
    """An annotation file.  fault: why it cannot be read;  size: width and height, None if not stated."""

    file: Path
    fault: Fault | None = None
    filename: str = ""
    size: tuple[int, int] | None = None
    size_line: int = 1
    objects: tuple[VOCObject, ...] = ()


def _list_file(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a list of names in UTF-8 ({error.reason}); save it as UTF-8 text") from error


def _has_flags(file: Path) -> bool:
    return all(NAME_AND_FLAG.fullmatch(line) for line in _lines(file) if line)


def _listed(folder: Path, split: str) -> list[_Listed]:
    """The names in a split's list.

    A second column and an image's extension are removed unless there is an annotation file with the longer name.
    """
    file = _list_file(folder, split)
    entries = []
    for line_number, line in enumerate(_lines(file), 1):
        if not line:
            continue
        column = NAME_AND_FLAG.fullmatch(line)
        candidates = [line, *([column[1]] if column else [])]
        candidates += [PurePosixPath(name).stem for name in candidates]
        existing = [name for name in candidates if is_file(folder / "Annotations" / f"{name}.xml")]
        name = existing[0] if existing else column[1] if column else line
        entries.append(_Listed(line if leads_outside(line) else name, f"{file}:{line_number}"))
    return entries


def read_document(folder: Path, name: str, names: FileNames) -> _Document:
    """Reads one XML file without resolving entities or fetching anything, because the file may be hostile."""
    file = folder / "Annotations" / f"{name}.xml"
    if not is_file(file) and len(alike := names.look_alikes(file, file.parent)) == 1:
        file = alike[0]
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


def _parse(
    folder: Path, split: str, listed: list[_Listed], documents: dict[str, _Document], labels: tuple[str, ...]
) -> ParsedSplit:
    faults: list[Fault] = []
    repairs = Repairs(split)
    files = ImagesByStem(_images_by_stem(folder), folder / "JPEGImages")
    found: list[tuple[_Document, Path]] = []
    for entry in _distinct(listed, faults):
        document = documents[entry.name]
        if document.fault is not None:
            faults.append(document.fault)
        elif path := image_of(entry.name, document.filename, document.file, files, faults, repairs):
            found.append((document, path))
    images = []
    for document, image in _with_sizes(found, faults, repairs):
        images.append(image)
        _add_objects(image, document, labels, faults, repairs)
    _refuse_other_notations(folder, found, images)
    objects = sum(len(document.objects) for document, _ in found)
    faults += repairs.faults({"images": len(listed), "objects": objects})
    return ParsedSplit(f"voc:{folder}", split, labels, images, faults)


def _distinct(listed: Sequence[_Listed], faults: list[Fault]) -> Iterator[_Listed]:
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


def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for file in sorted((folder / "JPEGImages").glob("*")):
        files.setdefault(file.stem, []).append(file)
    return files


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
    folder: Path, found: Sequence[tuple[_Document, Path]], images: Sequence[AnnotatedImage]
) -> None:
    sizes = {image.path: (image.width, image.height) for image in images}
    written = [
        (one.corners, sizes[path])
        for document, path in found
        for one in document.objects
        if one.corners is not None and path in sizes
    ]
    boxes = Written.of([corners for corners, _ in written], [size for _, size in written])
    refuse_sizes(str(folder / "Annotations"), boxes)


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
