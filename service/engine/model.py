"""Loads and checks a published version, `model.onnx` with `model.json`, or refuses it with a reason (contract 4).

No reason contains a path of the server, because clients read the reasons in `GET /models`.
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.engine import onnx_subgraph
from service.engine.card import LARGEST_CARD, Card, CardError, read_card, shortened

# How far CUDA may round, by the setting of this name: not at all; factors to ten bits; features to float16.
Precision = Literal["strict", "tf32", "fp16"]


class ModelRefusedError(Exception):
    """A version that cannot be served; the message gives the reason and the remedy."""

    def __init__(self, reason: str) -> None:
        super().__init__(shortened(reason))


class ModelIncompleteError(ModelRefusedError):
    """A version of which a part is missing. It may still be on its way."""


class ModelMismatchError(ModelRefusedError):
    """A version whose files are whole but do not belong together. One of them may be about to be replaced."""


class ModelUnreadableError(ModelRefusedError):
    """A version that cannot be read now, for a reason that may pass, such as permissions or a network file system."""


@dataclass(frozen=True)
class Model:
    card: Card
    graph: bytes

    @property
    def id(self) -> tuple[str, int]:
        return self.card.name, self.card.version

    def graph_for(self, provider: str, precision: Precision = "strict") -> bytes:
        """The graph that suits an execution provider and a precision; it refers to no other file."""
        return self.graph

    def precision_for(self, provider: str, precision: Precision = "strict") -> str:
        """The precision of the features of that graph: "fp32", "fp16" or "int8"."""
        return str((self.card.model_extra or {}).get("precision", "fp32"))


def load_model(directory: Path | str) -> Model:
    """The version in `directory`. Raises ModelRefusedError or one of its subclasses, with the reason."""
    directory = Path(directory).absolute()  # not resolve(): a mounted store may consist of symbolic links
    document = _read(directory / "model.json", LARGEST_CARD + 1)
    try:
        card = read_card(document)
    except CardError as error:
        kind = ModelIncompleteError if error.incomplete else ModelRefusedError
        raise kind(str(error)) from error
    place = f"{directory.parent.name}/{directory.name}"
    if f"{card.name}/{card.version}" != place:
        raise ModelRefusedError(
            f"model.json says {card.name}/{card.version}, but the folder is {place}; rename one of them"
        )
    graph = _read(directory / "model.onnx")
    _check_hash(graph, card)
    return Model(card, graph)


def _read(file: Path, limit: int = -1) -> bytes:
    """The first `limit` bytes of a regular file. Raises ModelIncompleteError or ModelUnreadableError."""
    try:
        with open(file, "rb", opener=_without_waiting) as opened:
            return opened.read(limit)
    except FileNotFoundError as error:
        raise ModelIncompleteError(f"{file.name} is missing; publish the model again") from error
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO, errno.ENODEV):
            raise ModelRefusedError(f"{file.name} is not a file; publish the model again") from error
        reason = (os.strerror(error.errno) if error.errno else type(error).__name__).lower()
        raise ModelUnreadableError(
            f"{file.name} cannot be read now ({reason}); it is tried again, so correct the cause"
        ) from error


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file. A pipe would otherwise block the thread that loads models for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_hash(graph: bytes, card: Card) -> None:
    digest = hashlib.sha256(graph).hexdigest()
    if digest == card.sha256:
        return
    if not onnx_subgraph.is_whole(graph):
        raise ModelIncompleteError(
            f"model.onnx is cut short or damaged after {len(graph)} bytes; its SHA-256 is not the one in model.json; "
            "publish the model again"
        )
    raise ModelMismatchError(f"model.onnx has SHA-256 {digest}, model.json says {card.sha256}; publish the model again")
