"""A published model, `model.onnx` with `model.json`: loaded whole, or refused with a reason (contract 4)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.images.fit import Geometry

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a model


class Refused(Exception):  # noqa: N818  the word that logs and /models use
    """A model that cannot be served; the message says why and what to do."""


class Resize(BaseModel):
    """Shorter side to `min_size` unless the longer would pass `max_size`; pixels."""

    min_size: int = Field(ge=1)
    max_size: int = Field(ge=1)
    antialias: bool = Field(True, description="false: as torchvision's detectors resize, see `interpolation`")


class Card(BaseModel):
    """`model.json`. Members beyond these are kept and shown as they are."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=NAME)
    version: int = Field(ge=0)
    labels: list[str] = Field(min_length=1, description="index 0 first; background is not among them")
    canvases: list[tuple[int, int]] = Field(min_length=1, description="height, width")
    resize: Resize
    score_threshold: float = Field(ge=0, le=1, description="what /detect uses when the request does not say")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of model.onnx")
    metrics: dict[str, Any] = {}
    training: Any = None
    opset: int | None = None
    provider: Literal["any", "cpu"] = Field(default="any", description="cpu: the graph is made for the CPU alone")

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
    """A checked model: its card, and the very bytes whose hash was checked."""

    card: Card
    graph: bytes

    @property
    def id(self) -> tuple[str, int]:
        return self.card.name, self.card.version


def load_model(directory: Path | str) -> Model:
    """The model in `directory`. Raises Refused with the reason."""
    directory = Path(directory).absolute()  # not resolved: a mounted store may be made of links
    try:
        card = Card.model_validate_json((directory / "model.json").read_bytes())
        graph = (directory / "model.onnx").read_bytes()
    except OSError as error:
        raise Refused(f"{error.filename} cannot be read ({error.strerror}); publish the model again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise Refused(f"model.json: {where}: {first['msg']}") from error
    place = f"{directory.parent.name}/{directory.name}"
    if f"{card.name}/{card.version}" != place:
        raise Refused(f"model.json says {card.name}/{card.version}, but the folder is {place}; rename one of them")
    if (digest := hashlib.sha256(graph).hexdigest()) != card.sha256:
        raise Refused(f"model.onnx has SHA-256 {digest}, model.json says {card.sha256}; publish the model again")
    long = card.resize.max_size
    short = min(card.resize.min_size, long)
    for height, width in ((short, long), (long, short)):
        # These two corners are the largest that `images.fit` makes, so holding them is holding every image.
        if not any(height <= H and width <= W for H, W in card.canvases):
            raise Refused(f"model.json: no canvas holds {height} x {width}, which resize can ask for; add one")
    return Model(card, graph)
