"""The elements of a COCO document's lists: what each must hold, and which spellings of it are understood.

An element is first checked as COCO defines it. Only if it does not conform, the values that tools are known to write
instead are replaced (numbers as text, an empty list for no value) and it is checked again, so that a correct
file of a million elements is read fast.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from faster_rcnn.data.annotations import LONGEST_SIDE
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.json_lists import JSONList
from faster_rcnn.data.outlines import number
from faster_rcnn.data.repairs import Repair, Repairs

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Side = Annotated[float, Field(strict=True, ge=1, multiple_of=1, le=LONGEST_SIDE)]  # some tools write 640.0 for 640
Identity = Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)] | Number

TEXT_FOR_NUMBERS = Repair(
    "number as text", "annotations", "hold numbers as text, which are read as numbers", "write them without quotes"
)
TEXT_FOR_SIZES = Repair(
    "number as text", "images", "hold numbers as text, which are read as numbers", "write them without quotes"
)
NO_AREA = Repair(
    "missing area",
    "annotations",
    "have no area above 0; that of the outline is used, or of the box if there is no outline",
    "add it, because APs, APm and APl are divided by area",
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Category(_Record):
    id: Identity
    name: Annotated[str, Field(strict=True, pattern=r"\S")]
    supercategory: Any = None


class ListedImage(_Record):
    """width, height: both None if the document does not state them, or not in a way that can be used."""

    id: Identity
    file_name: Annotated[str, Field(strict=True, min_length=1)]
    width: Side | None = None
    height: Side | None = None


class Object(_Record):
    """bbox: None if it is missing or empty;  area: None if it is missing, 0 or not a number."""

    id: Identity | None = None
    image_id: Identity
    category_id: Identity
    bbox: Annotated[list[Number], Field(min_length=4, max_length=4)] | None = None
    segmentation: Any = None
    area: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None
    iscrowd: Literal[0, 1] | None = None
    difficult: Literal[0, 1] | None = None  # not COCO's: `faster-rcnn check --write` keeps VOC's flag so
    ignore: Any = None


Kind = TypeVar("Kind", bound=_Record)


def records(
    kind: type[Kind],
    name: str,
    file: Path,
    elements: JSONList,
    faults: list[Fault],
    repairs: Repairs,
    left_out: set[Identity] | None = None,
    skippable: bool = True,
) -> Iterator[tuple[Kind, str]]:
    """Yields the valid elements of a list, each with its file, line and column.

    The faults of the invalid elements are added to `faults`, and their ids to `left_out`.
    """
    for value, place in elements:
        where = f"{file}:{place}"
        record = _checked(kind, value, where, repairs)
        if not isinstance(record, ValidationError):
            yield record, where
            continue
        identity = value.get("id") if isinstance(value, dict) else None
        if left_out is not None and isinstance(identity, int | str | float):
            left_out.add(identity)
        what = _explanation(name, value, identity, record)
        faults.append(Fault(f"malformed {name}", where, what, "correct or remove it", skippable=skippable))


def _checked(kind: type[Kind], value: Any, where: str, repairs: Repairs) -> Kind | ValidationError:
    """The element, if need be with known spellings replaced, or what is wrong with it."""
    check = kind.model_validate
    try:
        return check(value)
    except ValidationError as error:
        first = error
    try:
        return check(_repaired(kind, value, where, repairs))
    except ValidationError as error:
        return error
    except ValueError:
        return first


def canonical(identity: Any) -> str:
    """What `1`, `1.0`, `"1"`, `" 1"` and `"0001"` have in common, because tools mix them."""
    text = str(identity).strip()
    if isinstance(identity, float) and identity.is_integer():
        text = str(int(identity))
    return re.sub(r"^0+(?=\d+$)", "", text)


def _repaired(kind: type[_Record], value: Any, where: str, repairs: Repairs) -> Any:
    """The element with known spellings replaced and counted. Raises ValueError if a value cannot be understood."""
    if not isinstance(value, dict):
        return value
    if kind is ListedImage:
        return _with_sizes(value, where, repairs)
    return _with_numbers(value, where, repairs) if kind is Object else value


def _with_sizes(value: dict[str, Any], where: str, repairs: Repairs) -> dict[str, Any]:
    """Sides as numbers; without both sides if one of them cannot be used, which the reader counts (`NO_SIZE`)."""
    sides: dict[str, float | None] = {}
    for key in ("width", "height"):
        try:
            side = number(value.get(key))
        except ValueError:
            side = 0
        sides[key] = side if 1 <= side <= LONGEST_SIDE and side == int(side) else None
    if None in sides.values():
        sides = {"width": None, "height": None}
    elif any(isinstance(value[key], str) for key in sides):
        repairs.count(TEXT_FOR_SIZES, where)
    return {**value, **sides}


def _with_numbers(value: dict[str, Any], where: str, repairs: Repairs) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    text = ""  # an example of a number that is written as text
    box, area, crowd = value.get("bbox"), value.get("area"), value.get("iscrowd")
    if isinstance(box, list) and not box:
        changed["bbox"] = None
    elif isinstance(box, list) and any(isinstance(one, str) for one in box):
        changed["bbox"] = [number(one) for one in box]
        text = f"bbox {short(box)}"
    if isinstance(area, str):
        changed["area"] = number(area) if area.strip() else None
        text = text or f"area {short(area)}"
    elif isinstance(area, float) and not math.isfinite(area):
        changed["area"] = None
    if isinstance(crowd, str) and (flag := _FLAGS.get(crowd.strip().lower())) is not None:
        changed["iscrowd"] = flag
        text = text or f"iscrowd {short(crowd)}"
    if text:
        repairs.count(TEXT_FOR_NUMBERS, where, text)
    return {**value, **changed}


_FLAGS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": 0}


_EXPECTED = {  # for the members that may be of a wrong type
    **dict.fromkeys(("id", "image_id", "category_id"), "not a number or a text"),
    **dict.fromkeys(("name", "file_name"), "not a text with visible characters"),
    **dict.fromkeys(("width", "height"), f"not a whole number from 1 to {LONGEST_SIDE:,}"),
    **dict.fromkeys(("iscrowd", "difficult"), "neither 0 nor 1"),
    "bbox": "not a list of four finite numbers: x, y, width and height",
    "area": "not a number of at least 0",
}


def _explanation(name: str, value: Any, identity: object, error: ValidationError) -> str:
    """What is wrong with the element `value` of the list of `name`s: the first error that pydantic found."""
    first = error.errors()[0]
    if not first["loc"]:
        return f"this {name} is {short(value)}, not an object with an id"
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return f"{name} {short(identity)} has no {key}"
    return f"{name} {short(identity)}: its {key} is {short(value.get(key))}, {_EXPECTED[key]}"
