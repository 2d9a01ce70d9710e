"""Pascal VOC's format: `Annotations/*.xml`, `JPEGImages` and the splits listed in `ImageSets/Main`.

Everingham et al., VOC 2007 development kit: corners are counted from 1 and belong to the box, so a box of the whole of
a 640×480 image is written 1, 1, 640, 480 and is 0, 0, 640, 480 here.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as short

from lxml import etree

from faster_rcnn.data.annotated import LONGEST_SIDE, Annotation, Image, Parsed, escapes, is_file, no_area
from faster_rcnn.data.faults import Fault
from service.images.decode import ImageError, upright

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LISTED_WITH_COLUMN = re.compile(r"(.*\S)\s+-?[01]")


def read_voc(folder: Path, split: str) -> Parsed:
    """The annotations of a split. Classes are the names in all plain splits together, in alphabetical order, so that
    all splits number them alike.

    Raises FileNotFoundError that lists the splits found if this one is not there, ValueError if it lists nothing.
    """
    splits = voc_splits(folder)
    if split not in splits:
        there = ", ".join(splits) or "none"
        raise FileNotFoundError(
            f"{folder / 'ImageSets' / 'Main' / f'{split}.txt'} is not there; voc:DIR needs JPEGImages, Annotations and "
            f"ImageSets/Main/<split>.txt (splits found: {there})"
        )
    listed = {name: _listed(folder, name) for name in splits}
    if not listed[split]:
        raise ValueError(f"{_list_file(folder, split)} lists no images; write one name a line")
    stems = {entry.name for entries in listed.values() for entry in entries if not escapes(entry.name)}
    documents = {stem: read_document(folder, stem) for stem in sorted(stems)}
    names = {one.name for document in documents.values() for one in document.objects if one.name}
    labels = tuple(sorted(names))
    if not labels:
        raise ValueError(f"{folder / 'Annotations'}: no object of any split has a class name; annotate some images")
    return _parse(folder, split, listed[split], documents, labels)


def voc_splits(folder: Path) -> list[str]:
    """The splits of a folder. `<class>_<split>.txt` files, which say where a class is to be found, are none."""
    files = {file.stem: file for file in sorted((folder / "ImageSets" / "Main").glob("*.txt"))}

    def of_a_class(stem: str) -> bool:
        return any(stem.endswith(f"_{other}") for other in files) and _has_columns(files[stem])

    return [stem for stem in files if not of_a_class(stem)]


@dataclass(frozen=True)
class _Listed:
    name: str
    where: str


@dataclass(frozen=True)
class _Object:
    """name: "" if it has none;  corners: None if they are not four numbers, `fault` then says why."""

    line: int
    name: str
    corners: tuple[float, float, float, float] | None
    difficult: bool
    fault: str = ""


@dataclass(frozen=True)
class _Document:
    """fault: what keeps the file from being read at all;  size: width, height, None if it is not told."""

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
        raise ValueError(f"{file}: not a list of names in UTF-8 ({error.reason}); save it as text") from error


def _has_columns(file: Path) -> bool:
    return all(LISTED_WITH_COLUMN.fullmatch(line) for line in _lines(file) if line)


def _listed(folder: Path, split: str) -> list[_Listed]:
    """The names of a split. A second column and an image's extension are taken off where no file is called so."""
    file = _list_file(folder, split)
    entries = []
    for number, line in enumerate(_lines(file), 1):
        if not line:
            continue
        column = LISTED_WITH_COLUMN.fullmatch(line)
        candidates = [line, *([column[1]] if column else [])]
        candidates += [PurePosixPath(name).stem for name in candidates]
        there = [name for name in candidates if is_file(folder / "Annotations" / f"{name}.xml")]
        name = there[0] if there else column[1] if column else line
        entries.append(_Listed(line if escapes(line) else name, f"{file}:{number}"))
    return entries


def read_document(folder: Path, name: str) -> _Document:
    """One XML file. Entities are not resolved and nothing is fetched, whatever the file asks for."""
    file = folder / "Annotations" / f"{name}.xml"
    if not is_file(file):
        remedy = "add it (without <object> if the image shows none) or take the name off the list"
        return _Document(file, Fault("missing annotation", str(file), "the file is not there", remedy))
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    try:
        root = etree.fromstring(file.read_bytes(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return _Document(
            file, Fault("malformed annotation", f"{file}:{line}", f"not XML: {error}", "mend or remove it")
        )
    if root.tag != "annotation":
        what = f"its outermost element is <{root.tag}>, not VOC's <annotation>"
        return _Document(file, Fault("malformed annotation", f"{file}:{root.sourceline}", what, "mend or remove it"))
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
    """Raises ValueError if `text` is no finite number."""
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
    """An <object>; the boxes of its <part>s are not looked at."""
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
            found = f"is {short(text)}, no number" if text else "is missing"
            return _Object(line, name, None, False, f"<{corner}> of its <bndbox> {found}")
    return _Object(line, name, (corners[0], corners[1], corners[2], corners[3]), difficult == "1")


def _parse(
    folder: Path, split: str, listed: list[_Listed], documents: dict[str, _Document], labels: tuple[str, ...]
) -> Parsed:
    faults: list[Fault] = []
    pictures: list[Image] = []
    files = _images_by_stem(folder)
    seen: dict[str, str] = {}
    for entry in listed:
        if escapes(entry.name):
            what = f"{short(entry.name)} leads out of the folder"
            faults.append(Fault("name outside the folder", entry.where, what, "list names of files in it"))
        elif (first := seen.setdefault(entry.name, entry.where)) != entry.where:
            what = f"{entry.name} is listed already at {first}"
            faults.append(Fault("image listed twice", entry.where, what, "remove one of the two"))
        elif (fault := documents[entry.name].fault) is not None:
            faults.append(fault)
        elif image := _image(folder, entry, documents[entry.name], files, faults):
            pictures.append(image)
            _add_objects(image, documents[entry.name], labels, faults)
    return Parsed(f"voc:{folder}", split, labels, pictures, faults)


def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for file in sorted((folder / "JPEGImages").glob("*")):
        files.setdefault(file.stem, []).append(file)
    return files


def _image(
    folder: Path, entry: _Listed, document: _Document, files: dict[str, list[Path]], faults: list[Fault]
) -> Image | None:
    """The image of a file of annotations: the one of its name, else the one that its <filename> tells."""
    where = f"{document.file}:{document.size_line}"
    told = PurePosixPath(document.filename.replace("\\", "/")).name  # some tools write a whole path
    candidates = files.get(entry.name) or [
        file for file in files.get(PurePosixPath(told).stem, []) if file.name == told
    ]
    if not candidates:
        what = f"no image {entry.name}.* in {folder / 'JPEGImages'}" + (f", nor {short(told)}" if told else "")
        faults.append(Fault("missing image", str(document.file), what, f"add it or take {entry.name} off the list"))
        return None
    path = next((file for file in candidates if file.name == told), candidates[0])
    if len(candidates) > 1:
        what = f"{', '.join(file.name for file in candidates)} are all there; {path.name} is taken"
        faults.append(Fault("several images", str(document.file), what, "remove the others", warning=True))
    size = document.size
    if size is None:
        try:
            size = upright(path.read_bytes()).size
        except (ImageError, OSError) as error:
            why = error.fault if isinstance(error, ImageError) else error.strerror
            what = f"{path.name} cannot be read: {why}"
            faults.append(Fault("unreadable image", where, what, "replace it or take it off the list"))
            return None
        what = f"no width and height of {path.name}; the image's own, {size[0]}×{size[1]}, are taken"
        faults.append(Fault("size not told", where, what, "write them", warning=True))
    return Image(path.name, path, size[1], size[0], where)


def _add_objects(image: Image, document: _Document, labels: tuple[str, ...], faults: list[Fault]) -> None:
    places = {name: place for place, name in enumerate(labels)}
    for number, one in enumerate(document.objects, 1):
        where, title = f"{document.file}:{one.line}", f"object {number} ({one.name or 'without name'})"
        if not one.name:
            faults.append(Fault("unknown class", where, f"{title} has no class name", "name or remove it"))
            continue
        if one.corners is None:
            faults.append(Fault("malformed annotation", where, f"{title}: {one.fault}", "correct or remove it"))
            continue
        xmin, ymin, xmax, ymax = one.corners
        given = ", ".join(f"{corner} {value:g}" for corner, value in zip(CORNERS, one.corners, strict=True))
        box = (xmin - 1, ymin - 1, xmax, ymax)
        annotation = Annotation(where, title, given, box, places[one.name], difficult=one.difficult)
        if xmin >= xmax or ymin >= ymax:  # one pixel wide by the letter of the format; tools write it for a mere click
            faults.append(no_area(annotation, image.name))
        else:
            image.annotations.append(annotation)
