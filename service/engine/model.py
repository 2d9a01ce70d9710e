"""Loads and checks a published version, `model.onnx` with `model.json`, or refuses it with a reason (contract 4)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.images.fit import Geometry

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # the pattern of a model's name


class ModelRefusedError(Exception):
    """A version that cannot be served; the message gives the reason and the remedy."""


class Resize(BaseModel):
    """The shorter side becomes `min_size` pixels, or less if the longer side would exceed `max_size`."""

    min_size: int = Field(ge=1)
    max_size: int = Field(ge=1)
    antialias: bool = Field(True, description="false: resize as torchvision's detectors do")


class Card(BaseModel):
    """The contents of `model.json`. Members that are not listed here are kept and shown unchanged."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=NAME)
    version: int = Field(ge=0)
    labels: list[str] = Field(min_length=1, description="in order of their index, from 0; without the background")
    canvases: list[tuple[int, int]] = Field(min_length=1, description="height, width")
    resize: Resize
    score_threshold: float = Field(ge=0, le=1, description="the default of the request parameter score_threshold")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of model.onnx")
    metrics: dict[str, Any] = {}
    training: Any = None
    opset: int | None = None
    provider: Literal["any", "cpu"] = Field(default="any", description="cpu: the graph was exported for the CPU only")

    @field_validator("labels")
    @classmethod
    def labels_differ(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) != len(labels):
            raise ValueError("a label occurs twice")
        return labels

    @property
    def geometry(self) -> Geometry:
        return Geometry(tuple(self.canvases), self.resize.min_size, self.resize.max_size, self.resize.antialias)


@dataclass(frozen=True)
class Model:
    """A version whose files were checked: its card, and the bytes of the graph whose hash was checked."""

    card: Card
    graph: bytes

    @property
    def id(self) -> tuple[str, int]:
        return self.card.name, self.card.version


def load_model(directory: Path | str) -> Model:
    """The version in `directory`. Raises ModelRefusedError with the reason."""
    directory = Path(directory).absolute()  # not resolve(): a mounted store may consist of symbolic links
    try:
        card = Card.model_validate_json((directory / "model.json").read_bytes())
        graph = (directory / "model.onnx").read_bytes()
    except OSError as error:
        raise ModelRefusedError(
            f"{error.filename} cannot be read ({error.strerror}); publish the model again"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise ModelRefusedError(f"model.json: {where}: {first['msg']}") from error
    place = f"{directory.parent.name}/{directory.name}"
    if f"{card.name}/{card.version}" != place:
        raise ModelRefusedError(
            f"model.json says {card.name}/{card.version}, but the folder is {place}; rename one of them"
        )
    if (digest := hashlib.sha256(graph).hexdigest()) != card.sha256:
        raise ModelRefusedError(
            f"model.onnx has SHA-256 {digest}, model.json says {card.sha256}; publish the model again"
        )
    long = card.resize.max_size
    short = min(card.resize.min_size, long)
    for height, width in ((short, long), (long, short)):
        # `images.fit` makes no image larger than one of these two sizes, so canvases that hold both hold every image.
        if not any(height <= H and width <= W for H, W in card.canvases):
            raise ModelRefusedError(
                f"model.json: no canvas holds {height} x {width}, a size that images may have after resizing; add one"
            )
    return Model(card, graph)
