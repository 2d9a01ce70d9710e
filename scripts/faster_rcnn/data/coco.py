"""COCO's format: `annotations/<split>.json` and the images that it names."""

import json
from collections.abc import Iterator
from json.decoder import JSONArray  # type: ignore[attr-defined]  # there since Python 2.6, but not in the stubs
from json.scanner import py_make_scanner  # type: ignore[attr-defined]  # the same
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from faster_rcnn.data.annotated import LONGEST_SIDE, Annotation, Image, Parsed, escapes, is_file
from faster_rcnn.data.faults import Fault

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Side = Annotated[float, Field(strict=True, ge=1, multiple_of=1, le=LONGEST_SIDE)]  # 640.0 is met as often as 640
Identity = Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)] | Number


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Category(_Record):
    id: Identity
    name: Annotated[str, Field(strict=True, pattern=r"\S")]


class _Image(_Record):
    id: Identity
    file_name: Annotated[str, Field(strict=True, min_length=1)]
    width: Side
    height: Side


class _Object(_Record):
    id: Identity | None = None
    image_id: Identity
    category_id: Identity
    bbox: Annotated[list[Number], Field(min_length=4, max_length=4)]
    area: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None
    iscrowd: Literal[0, 1] | None = None


Kind = TypeVar("Kind", bound=_Record)


def read_coco(folder: Path, split: str) -> Parsed:
    """The annotations of a split. Classes are numbered in the order of their category ids.

    Raises FileNotFoundError that lists the splits found if this one is not there, ValueError that names the file if it
    is not COCO's format, has no classes or no images.
    """
    file = _annotation_file(folder, split)
    lists = _read(file)
    faults: list[Fault] = []
    categories = _categories(file, lists["categories"], faults)
    labels = tuple(category.name for category in categories)
    places = {category.id: place for place, category in enumerate(categories)}
    images: dict[Identity, Image] = {}
    left_out: set[Identity] = set()
    for image, where in _records(_Image, "image", file, lists["images"], faults, left_out):
        if fault := _image_fault(folder, split, image, where, images):
            faults.append(fault)
            left_out.add(image.id)
            continue
        path = _image_file(folder, split, image.file_name)
        assert path is not None  # `_image_fault` looked
        images[image.id] = Image(image.file_name, path, int(image.height), int(image.width), where)
    for one, where in _records(_Object, "annotation", file, lists["annotations"], faults):
        if fault := _object_fault(one, where, images, left_out, places):
            faults.append(fault)
        elif one.image_id in images:
            images[one.image_id].annotations.append(_annotation(one, where, places[one.category_id]))
    return Parsed(f"coco:{folder}", split, labels, list(images.values()), faults)


def coco_splits(folder: Path) -> list[str]:
    return sorted({file.stem.removeprefix("instances_") for file in (folder / "annotations").glob("*.json")})


def _annotation_file(folder: Path, split: str) -> Path:
    for name in (f"{split}.json", f"instances_{split}.json"):
        if (file := folder / "annotations" / name).is_file():
            return file
    there = ", ".join(coco_splits(folder)) or "none"
    raise FileNotFoundError(
        f"{folder / 'annotations' / f'{split}.json'} is not there; coco:DIR needs annotations/<split>.json "
        f"(splits found: {there})"
    )


class _Starts(list[Any]):
    """A list of JSON with the place in the text at which each element starts."""

    def __init__(self, values: list[Any], starts: list[int]) -> None:
        super().__init__(values)
        self.starts = starts


class _Decoder(json.JSONDecoder):
    """Python's own, which also keeps where the elements of the document's lists start, so that faults have a line."""

    def __init__(self) -> None:
        super().__init__()
        scan_fast = self.scan_once  # type: ignore[has-type]  # what the base class set, not the one set below

        def scan_list(text_and_end: tuple[str, int], _: Any) -> tuple[_Starts, int]:
            starts: list[int] = []

            def scan(text: str, start: int) -> tuple[Any, int]:
                starts.append(start)
                return scan_fast(text, start)

            values, end = JSONArray(text_and_end, scan)
            return _Starts(values, starts), end

        self.parse_array = scan_list
        self.scan_once = py_make_scanner(self)


def _read(file: Path) -> dict[str, list[tuple[Any, str]]]:
    """The lists of a document, each element with `file:line:column`.  Raises ValueError that names the file."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        document = _Decoder().decode(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise ValueError(f"{file}: not JSON: {error}; export it again as COCO") from error
    lists = {}
    for name in ("images", "categories", "annotations"):
        found = document.get(name) if isinstance(document, dict) else None
        if not isinstance(found, _Starts):
            raise ValueError(
                f"{file}: not COCO's format: it has no list of {name}, but {short(found)}; export it again as COCO"
            )
        if not found and name != "annotations":
            raise ValueError(f"{file}: its list of {name} is empty; export it again with some")
        lists[name] = [(value, f"{file}:{place}") for value, place in zip(found, _places(text, found), strict=True)]
    return lists


def _places(text: str, found: _Starts) -> Iterator[str]:
    """line:column of each element, both from 1; one walk through the text."""
    line, line_start, previous = 1, 0, 0
    for start in found.starts:
        if newlines := text.count("\n", previous, start):
            line += newlines
            line_start = text.rindex("\n", previous, start) + 1
        previous = start
        yield f"{line}:{start - line_start + 1}"


def _records(
    kind: type[Kind],
    name: str,
    file: Path,
    elements: list[tuple[Any, str]],
    faults: list[Fault],
    left_out: set[Identity] | None = None,
    skippable: bool = True,
) -> Iterator[tuple[Kind, str]]:
    """The elements that are what they should be, and where; `faults` gets those that are not, `left_out` their ids."""
    adapter = TypeAdapter(kind)
    for value, where in elements:
        try:
            yield adapter.validate_python(value), where
        except ValidationError as error:
            first = error.errors()[0]
            identity = value.get("id") if isinstance(value, dict) else None
            if left_out is not None and isinstance(identity, int | str | float):
                left_out.add(identity)
            path = ".".join(str(part) for part in first["loc"][:1]) or "it"
            found = short(value.get(path)) if isinstance(value, dict) and path in value else short(first["input"])
            what = f"{name} {short(identity)}: its {path} is {found}: {first['msg'].lower()}"
            if first["type"] == "missing":
                what = f"{name} {short(identity)} has no {path}"
            elif path == "it":
                what = f"a {name} is {short(value)}, not an object with an id"
            faults.append(Fault(f"malformed {name}", where, what, "correct or remove it", skippable=skippable))


def _categories(file: Path, elements: list[tuple[Any, str]], faults: list[Fault]) -> list[_Category]:
    """The classes by id. What is wrong with them cannot be skipped: the numbering would be another."""
    categories: dict[Identity, _Category] = {}
    names: dict[str, str] = {}
    for category, where in _records(_Category, "category", file, elements, faults, skippable=False):
        if category.id in categories:
            what = f"category {category.id!r} ({category.name}) is there already as {categories[category.id].name}"
            faults.append(Fault("class listed twice", where, what, "give each its own id", skippable=False))
        elif (first := names.setdefault(category.name, where)) != where:
            what = f"the class {category.name} is there already at {first}"
            faults.append(Fault("class listed twice", where, what, "rename or merge one", skippable=False))
        else:
            categories[category.id] = category
    return sorted(categories.values(), key=lambda one: (isinstance(one.id, str), one.id))


def _image_fault(folder: Path, split: str, image: _Image, where: str, images: dict[Identity, Image]) -> Fault | None:
    if image.id in images:
        what = f"image {image.id!r} is listed already at {images[image.id].where}"
        return Fault("image listed twice", where, what, "give each image its own id")
    if escapes(image.file_name):
        what = f"image {image.id!r} names {short(image.file_name)}, which leads out of the folder"
        return Fault("name outside the folder", where, what, "name files in it")
    if _image_file(folder, split, image.file_name) is None:
        places = ", ".join(map(str, _image_places(folder, split, image.file_name)))
        what = f"names {image.file_name}, which is none of {places}"
        return Fault("missing image", where, what, "add it or remove it from the list")
    return None


def _object_fault(
    one: _Object, where: str, images: dict[Identity, Image], left_out: set[Identity], places: dict[Identity, int]
) -> Fault | None:
    """What an annotation names that is not there; an image that was left out has a fault of its own."""
    if one.image_id not in images and one.image_id not in left_out:
        what = f"annotation {one.id!r} names image {one.image_id!r}, which the file does not list"
        return Fault("annotation of an unknown image", where, what, "add the image or remove the annotation")
    if one.category_id not in places:
        what = f"annotation {one.id!r} names category {one.category_id!r}, which the file does not list"
        return Fault("unknown class", where, what, "add the category or remove the annotation")
    return None


def _annotation(one: _Object, where: str, label: int) -> Annotation:
    x, y, width, height = one.bbox
    given = f"[{', '.join(f'{value:g}' for value in one.bbox)}]"
    title = f"annotation {one.id}"
    return Annotation(where, title, given, (x, y, x + width, y + height), label, bool(one.iscrowd), area=one.area)


def _image_places(folder: Path, split: str, name: str) -> list[Path]:
    name = name.replace("\\", "/")  # as tools on Windows write folders
    return [folder / name, folder / "images" / name, folder / split / name, folder / "images" / split / name]


def _image_file(folder: Path, split: str, name: str) -> Path | None:
    return next((place for place in _image_places(folder, split, name) if is_file(place)), None)
