"""Pascal VOC's format: `Annotations/*.xml`, `JPEGImages` and the splits listed in `ImageSets/Main`.

Everingham et al., VOC 2007 development kit: pixels are counted from 1, and the corner pixels belong to the box. So the
box around a whole 640×480 image is 1, 1, 640, 480 in the file and 0, 0, 640, 480 here.
"""

import math
import re
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
    documents = {stem: read_document(folder, stem) for stem in sorted(stems)}
    names = {found.name for document in documents.values() for found in document.objects if found.name}
    labels = tuple(sorted(names))
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
    for number, line in enumerate(_lines(file), 1):
        if not line:
            continue
        column = NAME_AND_FLAG.fullmatch(line)
        candidates = [line, *([column[1]] if column else [])]
        candidates += [PurePosixPath(name).stem for name in candidates]
        existing = [name for name in candidates if is_file(folder / "Annotations" / f"{name}.xml")]
        name = existing[0] if existing else column[1] if column else line
        entries.append(_Listed(line if leads_outside(line) else name, f"{file}:{number}"))
    return entries


def read_document(folder: Path, name: str) -> _Document:
    """Reads one XML file without resolving entities or fetching anything, because the file may be hostile."""
    file = folder / "Annotations" / f"{name}.xml"
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


def _parse(
    folder: Path, split: str, listed: list[_Listed], documents: dict[str, _Document], labels: tuple[str, ...]
) -> ParsedSplit:
    faults: list[Fault] = []
    images: list[AnnotatedImage] = []
    files = _images_by_stem(folder)
    first_where: dict[str, str] = {}
    for entry in listed:
        if leads_outside(entry.name):
            what = f"{short(entry.name)} points outside the folder"
            faults.append(Fault("name outside the folder", entry.where, what, "list names of files in the folder"))
        elif (first := first_where.setdefault(entry.name, entry.where)) != entry.where:
            what = f"{entry.name} is already listed at {first}"
            faults.append(Fault("image listed twice", entry.where, what, "remove one of the two"))
        elif (fault := documents[entry.name].fault) is not None:
            faults.append(fault)
        elif image := _image(folder, entry, documents[entry.name], files, faults):
            images.append(image)
            _add_objects(image, documents[entry.name], labels, faults)
    return ParsedSplit(f"voc:{folder}", split, labels, images, faults)


def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for file in sorted((folder / "JPEGImages").glob("*")):
        files.setdefault(file.stem, []).append(file)
    return files


def _image(
    folder: Path, entry: _Listed, document: _Document, files: dict[str, list[Path]], faults: list[Fault]
) -> AnnotatedImage | None:
    """The image of an annotation file: the one with the same name, else the one that its <filename> names.

    If there is no such image, returns None and adds the reason to `faults`.
    """
    where = f"{document.file}:{document.size_line}"
    stated = PurePosixPath(document.filename.replace("\\", "/")).name  # some tools write a whole path
    candidates = files.get(entry.name) or [
        file for file in files.get(PurePosixPath(stated).stem, []) if file.name == stated
    ]
    if not candidates:
        what = f"no image {entry.name}.* in {folder / 'JPEGImages'}" + (f", nor {short(stated)}" if stated else "")
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
