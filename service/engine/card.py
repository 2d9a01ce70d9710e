"""The card of a version, `model.json`: its members, and the limits that keep it servable (contract 4.1)."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.images.depth import WHITE
from service.images.fit import Geometry

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # the pattern of a model's name
OTHER_FILE = r"^model\.[a-z0-9][a-z0-9.-]*\.onnx$"  # the pattern of the file of another graph than model.onnx
GRAPH_NAME = r"^[a-z0-9][a-z0-9-]*$"
SHA256 = r"^[0-9a-f]{64}$"
LONGEST_NAME = 100  # characters; names are shown in answers, log lines and metrics
HIGHEST_VERSION = 2**53 - 1  # the largest whole number that every JSON reader keeps exact
LARGEST_CARD = 2**20  # bytes; the embedded models' cards have 4 kB
MOST_LABELS = 10_000
LONGEST_LABEL = 200  # characters
MOST_GRAPHS = 16
MOST_CANVASES = 256  # every image compares itself with each canvas, and CUDA runs each of them before it serves
LONGEST_SIDE = 16_384  # pixels
LONGEST_REASON = 300  # characters of a reason for a refusal

Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE, strict=True)]
FeaturePrecision = Literal["fp32", "fp16", "int8"]
Whole = Annotated[int, Field(strict=True)]  # otherwise `true` would count as 1


class CardError(ValueError):
    """A card that cannot be served; the message gives the fault and the remedy.

    incomplete  whether the rest of the file may still be on its way
    """

    def __init__(self, message: str, incomplete: bool = False) -> None:
        super().__init__(shortened(message))
        self.incomplete = incomplete


class Resize(BaseModel):
    """The shorter side becomes `min_size` pixels, or less if the longer side would exceed `max_size`."""

    min_size: Whole = Field(ge=1, le=2**31 - 1)
    max_size: Side
    antialias: bool = Field(True, description="false: resize as torchvision's detectors do")


class OtherGraph(BaseModel):
    """A graph of the version beside `model.onnx`: the same detector, in a form or a precision that suits a provider."""

    model_config = ConfigDict(extra="allow")

    file: str = Field(pattern=OTHER_FILE, max_length=LONGEST_NAME, description="its name, in the folder of the version")
    sha256: str = Field(pattern=SHA256)
    bytes: Whole = Field(ge=1, description="the size of the file")
    precision: FeaturePrecision = "fp32"


class Card(BaseModel):
    """The contents of `model.json`. Members that are not listed here are kept and shown unchanged."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=NAME, max_length=LONGEST_NAME)
    version: Whole = Field(ge=0, le=HIGHEST_VERSION)
    labels: list[str] = Field(
        min_length=1, max_length=MOST_LABELS, description="in order of their index, from 0; without the background"
    )
    canvases: list[tuple[Side, Side]] = Field(min_length=1, max_length=MOST_CANVASES, description="height, width")
    resize: Resize
    score_threshold: float = Field(
        strict=True, ge=0, le=1, allow_inf_nan=False, description="the default of the request parameter score_threshold"
    )
    sha256: str = Field(pattern=SHA256, description="of model.onnx")
    precision: FeaturePrecision = Field(default="fp32", description="of the features in model.onnx")
    graphs: dict[Annotated[str, Field(pattern=GRAPH_NAME, max_length=LONGEST_NAME)], OtherGraph] = Field(
        default={}, max_length=MOST_GRAPHS, description="the other graphs of the version, by name"
    )
    metrics: dict[str, Any] = {}
    training: Any = None
    opset: Whole | None = None
    white: Whole = Field(
        default=WHITE, ge=1, le=WHITE, description="the value that means white in an image with 16 bits per channel"
    )
    provider: Literal["any", "cpu"] = Field(default="any", description="cpu: the graph was exported for the CPU only")

    @field_validator("labels")
    @classmethod
    def labels_can_be_told_apart(cls, labels: list[str]) -> list[str]:
        for index, label in enumerate(labels):
            if not label.strip():
                raise ValueError(f"label {index} is blank; name the class")
            if len(label) > LONGEST_LABEL:
                raise ValueError(f"label {index} has {len(label)} characters, more than {LONGEST_LABEL}; shorten it")
            if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in label):
                raise ValueError(f"label {index} has a control character; remove it")
        first: dict[str, int] = {}
        for index, label in enumerate(labels):
            look = unicodedata.normalize("NFC", label).strip()
            if look in first:
                raise ValueError(f"a label occurs twice: labels {first[look]} and {index}; name each class differently")
            first[look] = index
        return labels

    @field_validator("canvases")
    @classmethod
    def canvases_differ(cls, canvases: list[tuple[int, int]]) -> list[tuple[int, int]]:
        seen: set[tuple[int, int]] = set()
        for height, width in canvases:
            if (height, width) in seen:
                raise ValueError(f"canvas {height} x {width} occurs twice; list it once")
            seen.add((height, width))
        return canvases

    @field_validator("graphs")
    @classmethod
    def graphs_have_files_of_their_own(cls, graphs: dict[str, OtherGraph]) -> dict[str, OtherGraph]:
        if len({graph.file for graph in graphs.values()}) < len(graphs):
            raise ValueError("two graphs have the same file; name a file for each")
        return graphs

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            tuple(self.canvases), self.resize.min_size, self.resize.max_size, self.resize.antialias, self.white
        )


def read_card(data: bytes) -> Card:
    """The card in the bytes of `model.json`. Raises CardError."""
    if len(data) > LARGEST_CARD:
        raise CardError(f"model.json has more than {LARGEST_CARD} bytes; move what the service need not show elsewhere")
    try:
        card = Card.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise CardError(_json_fault(data, first["msg"]), incomplete=_is_cut(first["msg"])) from error
        where = ".".join(map(str, first["loc"])) or "the document"
        raise CardError(f"model.json: {where}: {first['msg'].removeprefix('Value error, ')}") from error
    if fault := _unwritable(card):
        raise CardError(f"model.json: {fault}")
    _check_that_images_fit(card)
    return card


def shortened(reason: str) -> str:
    """`reason` on one line of bounded length, because a card may hold anything."""
    line = "".join(character if character.isprintable() else " " for character in reason)
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 1]}…"


def _is_cut(message: str) -> bool:
    return "EOF while parsing" in message


def _json_fault(data: bytes, message: str) -> str:
    if not data:
        return "model.json is empty; publish the model again"
    if _is_cut(message):
        return "model.json ends too early; publish the model again"
    if data.startswith(b"\xef\xbb\xbf"):
        return "model.json begins with a byte order mark; save it as UTF-8 without one"
    if "recursion" in message:
        return "model.json is nested too deeply; flatten it"
    return f"model.json is not valid JSON{_position(message)}; correct it or publish the model again"


def _position(message: str) -> str:
    """Where the parser stopped, from the end of its message: " at line 3 column 7"."""
    before, at, position = message.rpartition(" at line ")
    return f"{at}{position}" if before and position.replace(" column ", "").isdecimal() else ""


def _unwritable(card: Card) -> str | None:
    """Why `GET /models` could not show the card, or None if it can."""
    try:
        orjson.dumps(card.model_dump(mode="json"))
    except (TypeError, ValueError, RecursionError):
        too_large = next(_numbers(card.model_dump(), "", _is_beyond_64_bits), None)
        return (
            f"{too_large} is beyond 64 bits; write it as text" if too_large else "it is nested too deeply; flatten it"
        )
    if endless := next(_numbers(card.model_dump(), "", _is_not_finite), None):
        return f"{endless} is not a finite number, which JSON cannot hold; write null or text"
    return None


def _numbers(value: Any, where: str, fault: Callable[[Any], bool]) -> Iterator[str]:
    """The places of the numbers in `value` that have this fault."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{where}.{name}" if where else str(name), fault)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{where}.{index}", fault)
    elif fault(value):
        yield where


def _is_beyond_64_bits(value: Any) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _check_that_images_fit(card: Card) -> None:
    long = card.resize.max_size
    short = min(card.resize.min_size, long)
    for height, width in ((short, long), (long, short)):
        # `images.fit` makes no image larger than one of these two sizes, so canvases that hold both hold every image.
        if not any(height <= H and width <= W for H, W in card.canvases):
            raise CardError(
                f"model.json: no canvas holds {height} x {width}, a size that images may have after resizing; add one"
            )
