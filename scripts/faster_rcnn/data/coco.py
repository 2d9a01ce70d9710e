"""COCO's format: `annotations/<split>.json` and the images that it names."""

from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from faster_rcnn.data.annotations import (
    LONGEST_SIDE,
    AnnotatedImage,
    Annotation,
    ParsedSplit,
    leads_outside,
)
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.file_names import FileNames
from faster_rcnn.data.json_lists import JSONList, decode_members

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Side = Annotated[float, Field(strict=True, ge=1, multiple_of=1, le=LONGEST_SIDE)]  # some tools write 640.0 for 640
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
    difficult: Literal[0, 1] | None = None  # not COCO's: `faster-rcnn check --write` keeps VOC's flag so


Kind = TypeVar("Kind", bound=_Record)


def read_coco(folder: Path, split: str) -> ParsedSplit:
    """Reads the annotations of a split. Classes are numbered in the order of their category ids.

    Raises FileNotFoundError, listing the splits found, if `split` does not exist; ValueError, naming the file, if it is
    not in COCO's format or has no classes or no images.
    """
    file = _annotation_file(folder, split)
    lists = _read(file)
    faults: list[Fault] = []
    categories = _categories(file, lists["categories"], faults)
    labels = tuple(category.name for category in categories)
    label_of = {category.id: label for label, category in enumerate(categories)}
    images: dict[Identity, AnnotatedImage] = {}
    left_out: set[Identity] = set()
    files = FileNames()
    for image, where in _records(_Image, "image", file, lists["images"], faults, left_out):
        path = _image_file(folder, split, image, where, images, files)
        if isinstance(path, Fault):
            faults.append(path)
            left_out.add(image.id)
            continue
        images[image.id] = AnnotatedImage(image.file_name, path, int(image.height), int(image.width), where)
    for found, where in _records(_Object, "annotation", file, lists["annotations"], faults):
        if fault := _object_fault(found, where, images, left_out, label_of):
            faults.append(fault)
        elif found.image_id in images:
            images[found.image_id].annotations.append(_annotation(found, where, label_of[found.category_id]))
    return ParsedSplit(f"coco:{folder}", split, labels, list(images.values()), faults)


def coco_splits(folder: Path) -> list[str]:
    """The splits of a folder, in alphabetical order."""
    return sorted({file.stem.removeprefix("instances_") for file in (folder / "annotations").glob("*.json")})


def _annotation_file(folder: Path, split: str) -> Path:
    for name in (f"{split}.json", f"instances_{split}.json"):
        if (file := folder / "annotations" / name).is_file():
            return file
    found = ", ".join(coco_splits(folder)) or "none"
    raise FileNotFoundError(
        f"{folder / 'annotations' / f'{split}.json'} does not exist; coco:DIR needs annotations/<split>.json "
        f"(splits found: {found})"
    )


def _read(file: Path) -> dict[str, JSONList]:
    """The lists of a document by name.  Raises ValueError, naming the file, if it is not in COCO's format."""
    try:
        document = decode_members(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise ValueError(f"{file}: not JSON: {error}; export it again as COCO") from error
    lists: dict[str, JSONList] = {}
    for name in ("images", "categories", "annotations"):
        if name not in document:
            raise ValueError(f"{file}: not in COCO's format: it has no list of {name}; export it again as COCO")
        found = document[name]
        if not isinstance(found, JSONList):
            raise ValueError(
                f"{file}: not in COCO's format: its {name} are {short(found)}, not a list; export it again as COCO"
            )
        if not len(found) and name != "annotations":
            raise ValueError(f"{file}: its list of {name} is empty; export it again with {name}")
        lists[name] = found
    return lists


def _records(
    kind: type[Kind],
    name: str,
    file: Path,
    elements: JSONList,
    faults: list[Fault],
    left_out: set[Identity] | None = None,
    skippable: bool = True,
) -> Iterator[tuple[Kind, str]]:
    """Yields the valid elements of a list, each with its file, line and column.

    The faults of the invalid elements are added to `faults`, and their ids to `left_out`.
    """
    adapter = TypeAdapter(kind)
    for value, place in elements:
        where = f"{file}:{place}"
        try:
            yield adapter.validate_python(value), where
        except ValidationError as error:
            identity = value.get("id") if isinstance(value, dict) else None
            if left_out is not None and isinstance(identity, int | str | float):
                left_out.add(identity)
            what = _explanation(name, value, identity, error)
            faults.append(Fault(f"malformed {name}", where, what, "correct or remove it", skippable=skippable))


def _explanation(name: str, value: Any, identity: object, error: ValidationError) -> str:
    """What is wrong with the element `value` of the list of `name`s: the first error that pydantic found."""
    first = error.errors()[0]
    if not first["loc"]:
        return f"this {name} is {short(value)}, not an object with an id"
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return f"{name} {short(identity)} has no {key}"
    return f"{name} {short(identity)}: its {key} is {short(value.get(key))}: {first['msg'].lower()}"


def _categories(file: Path, elements: JSONList, faults: list[Fault]) -> list[_Category]:
    """The classes in the order of their ids. Their faults cannot be skipped: skipping would change the numbers."""
    categories: dict[Identity, _Category] = {}
    first_with: dict[str, str] = {}
    for category, where in _records(_Category, "category", file, elements, faults, skippable=False):
        if category.id in categories:
            what = f"category {category.id!r} ({category.name}) is already listed as {categories[category.id].name}"
            faults.append(Fault("class listed twice", where, what, "give each category its own id", skippable=False))
        elif (first := first_with.setdefault(category.name, where)) != where:
            what = f"the class {category.name} is already listed at {first}"
            faults.append(Fault("class listed twice", where, what, "rename one, or merge the two", skippable=False))
        else:
            categories[category.id] = category
    return sorted(categories.values(), key=lambda category: (isinstance(category.id, str), category.id))


def _image_file(
    folder: Path, split: str, image: _Image, where: str, images: dict[Identity, AnnotatedImage], files: FileNames
) -> Path | Fault:
    """The file of an image, or the fault of an image that cannot be used.  images: those before it."""
    if image.id in images:
        what = f"image {image.id!r} is already listed at {images[image.id].where}"
        return Fault("image listed twice", where, what, "give each image its own id")
    if leads_outside(image.file_name):
        what = f"image {image.id!r} names {short(image.file_name)}, which points outside the folder"
        return Fault("name outside the folder", where, what, "name a file in the folder")
    places = _image_places(folder, split, image.file_name)
    for place in places:
        if place in files:
            return place
    what = f"image file {image.file_name} not found; these were tried: {', '.join(map(str, places))}"
    return Fault("missing image", where, what, "add it or remove it from the list")


def _object_fault(
    found: _Object,
    where: str,
    images: dict[Identity, AnnotatedImage],
    left_out: set[Identity],
    label_of: dict[Identity, int],
) -> Fault | None:
    """The fault of an annotation that names an unlisted image or category; images left out have their own fault."""
    if found.image_id not in images and found.image_id not in left_out:
        what = f"annotation {found.id!r} names image {found.image_id!r}, which the file does not list"
        return Fault("annotation of an unknown image", where, what, "add the image or remove the annotation")
    if found.category_id not in label_of:
        what = f"annotation {found.id!r} names category {found.category_id!r}, which the file does not list"
        return Fault("unknown class", where, what, "add the category or remove the annotation")
    return None


def _annotation(found: _Object, where: str, label: int) -> Annotation:
    x, y, width, height = found.bbox
    return Annotation(
        where,
        title=f"annotation {found.id}",
        written_box=f"[{', '.join(f'{value:g}' for value in found.bbox)}]",
        box=(x, y, x + width, y + height),
        label=label,
        crowd=bool(found.iscrowd),
        difficult=bool(found.difficult),
        area=found.area,
    )


def _image_places(folder: Path, split: str, name: str) -> list[Path]:
    name = name.replace("\\", "/")  # tools on Windows separate folders with backslashes
    return [folder / name, folder / "images" / name, folder / split / name, folder / "images" / split / name]
