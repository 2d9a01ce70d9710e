"""Loads and checks a published version, `model.json` and its graphs, or refuses it with a reason (contract 4).

No reason contains a path of the server, because clients read the reasons in `GET /models`.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.engine import onnx_subgraph
from service.engine.card import LARGEST_CARD, Card, CardError, OtherGraph, read_card, shortened
from service.engine.precision import Precision
from service.engine.providers import CPU, CUDA
from service.engine.shared_weights import with_weights


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


# The graphs that suit a provider and a precision, by their names in the card, best first; then the portable graph.
SUITABLE: Mapping[tuple[str, Precision], Sequence[str]] = {
    (CUDA, "strict"): ("cuda",),
    (CUDA, "tf32"): ("cuda",),
    (CUDA, "fp16"): ("cuda-fp16", "cuda"),
}


@dataclass(frozen=True)
class Model:
    """A version: its card and its portable graph. Other graphs are read from `directory` when a provider needs them."""

    card: Card
    graph: bytes
    directory: Path | None = None
    _others: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def id(self) -> tuple[str, int]:
        return self.card.name, self.card.version

    def graph_for(self, provider: str, precision: Precision = "strict") -> bytes:
        """The graph that suits an execution provider and a precision; it refers to no other file.

        Its file is read and checked on the first call. Raises ModelRefusedError or one of its subclasses.
        """
        other = self.other_graph(provider, precision)
        if other is None:
            return self.graph
        if other.file not in self._others:
            self._others[other.file] = self._read_other(other)
        return self._others[other.file]

    def precision_for(self, provider: str, precision: Precision = "strict") -> str:
        """The precision of the features of that graph: "fp32", "fp16" or "int8"."""
        other = self.other_graph(provider, precision)
        return self.card.precision if other is None else other.precision

    def other_graph(self, provider: str, precision: Precision = "strict") -> OtherGraph | None:
        """The card's entry of that graph; None for the portable one."""
        names = SUITABLE.get((CPU if self.card.provider == "cpu" else provider, precision), ())
        return next((self.card.graphs[name] for name in names if name in self.card.graphs), None)

    def with_only(self, name: str) -> Model:
        """The same version with one of its other graphs as the only one, so that any provider runs it.

        name  in the card.  Raises ModelRefusedError or one of its subclasses.
        """
        other = self.card.graphs[name]
        card = self.card.model_copy(update={"graphs": {}, "precision": other.precision})
        return Model(card, self._read_other(other))

    def _read_other(self, other: OtherGraph) -> bytes:
        if self.directory is None:
            raise ModelIncompleteError(f"{other.file} is missing; publish the model again")
        data = _read(self.directory / other.file, other.bytes + 1)
        if len(data) < other.bytes:
            raise ModelIncompleteError(
                f"{other.file} has {len(data)} bytes, model.json says {other.bytes}; publish the model again"
            )
        if (digest := hashlib.sha256(data).hexdigest()) != other.sha256:
            raise ModelMismatchError(
                f"{other.file} has SHA-256 {digest}, model.json says {other.sha256}; publish the model again"
            )
        try:
            return with_weights(data, self.graph)
        except ValueError as error:
            raise ModelRefusedError(f"{other.file}: {error}") from error


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
    return Model(card, graph, directory)


def _read(file: Path, limit: int = -1) -> bytes:
    """The first `limit` bytes of a regular file. Raises ModelIncompleteError or ModelUnreadableError."""
    try:
        with open(file, "rb", opener=_without_waiting) as opened:
            # the system may be asked for no more than the file has, as a limit comes from a card, which may be wrong
            return opened.read(limit if limit < 0 else min(limit, os.fstat(opened.fileno()).st_size + 1))
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
