"""Weights that the graphs of one version share.

A version may hold other graphs beside `model.onnx` (contract 4.8). Weights that they have in common are stored once, in
`model.onnx`: a tensor of another graph refers to them as ONNX's external data, by the file's name, an offset and a
length. Here these references are checked and replaced by the values, so that no session reads another file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from service.engine import onnx_subgraph
from service.engine.protobuf import (
    ENTRY_KEY,
    ENTRY_VALUE,
    GRAPH_INITIALIZER,
    MODEL_GRAPH,
    TENSOR_EXTERNAL,
    TENSOR_LOCATION,
    TENSOR_NAME,
    TENSOR_RAW,
    Field,
    encode,
    fields,
    payloads,
    string,
)

PORTABLE = "model.onnx"
MOST_DIMENSIONS = 16  # of a weight; the product of a million dimensions would take minutes
LONGEST_NUMBER = 19  # digits; enough for any offset in a file


class Weight(NamedTuple):
    """Where an initializer's values are in the file `model.onnx`, how many they are, and their TensorProto.DataType."""

    offset: int
    length: int
    elements: int
    element: int


def weights(model: bytes) -> dict[str, Weight]:
    """The initializers of `model` whose values are stored as raw bytes, by name. Raises ValueError for malformed bytes.

    The order is that of the file.
    """
    found = {}
    for graph in _all(memoryview(model), MODEL_GRAPH):
        for tensor in _all(graph.payload, GRAPH_INITIALIZER):
            raw = list(_all(tensor.payload, TENSOR_RAW))
            if len(raw) == 1 and (kind := _kind(tensor.payload)):
                offset = graph.begin + tensor.begin + raw[0].begin
                found[string(tensor.payload, TENSOR_NAME)] = Weight(offset, len(raw[0].payload), *kind)
    return found


def with_weights(graph: bytes, portable: bytes) -> bytes:
    """`graph` with the values that it refers to in `portable`, the bytes of `model.onnx`; it refers to nothing else.

    A reference must name exactly the values of one initializer of `model.onnx`, of the same type and number of
    elements, and no two may name the same: so a graph never grows by more than the size of `model.onnx`.
    Raises ValueError, naming the tensor.
    """
    at = {(weight.offset, weight.length): weight for weight in weights(portable).values()}
    readers: dict[tuple[int, int], str] = {}
    parts: list[bytes | memoryview] = []
    for field in fields(onnx_subgraph.graph_of(graph)):
        if field.number != GRAPH_INITIALIZER or not onnx_subgraph.is_external(field.payload):
            parts.append(field.whole)
            continue
        name = string(field.payload, TENSOR_NAME)
        weight = _referred_to(name, field.payload, at)
        other = readers.setdefault((weight.offset, weight.length), name)
        if other is not name:
            raise ValueError(f"tensors {other!r} and {name!r} refer to the same bytes of {PORTABLE}; store one inside")
        values = portable[weight.offset : weight.offset + weight.length]
        parts.append(encode(GRAPH_INITIALIZER, _without_reference(field.payload) + encode(TENSOR_RAW, values)))
    whole = onnx_subgraph.with_graph(graph, b"".join(parts)) if readers else graph
    onnx_subgraph.refuse_external_data(whole)  # a constant or the body of a loop may refer to a file, too
    return whole


def _referred_to(name: str, tensor: memoryview, at: Mapping[tuple[int, int], Weight]) -> Weight:
    """The weight that a tensor refers to. Raises ValueError."""
    entries: dict[str, str] = {}
    for entry in payloads(tensor, TENSOR_EXTERNAL):
        key = string(entry, ENTRY_KEY)
        if key in entries:
            raise ValueError(f"tensor {name!r} has {key!r} twice in its reference; export the version again")
        entries[key] = string(entry, ENTRY_VALUE)
    if entries.get("location") != PORTABLE:
        raise ValueError(f"tensor {name!r} is stored in another file than {PORTABLE}; save it inside")
    if entries.keys() != {"location", "offset", "length"} or any(True for _ in payloads(tensor, TENSOR_RAW)):
        raise ValueError(f"tensor {name!r} needs an offset and a length in {PORTABLE}, and nothing else; export again")
    offset, length = (_number(entries[key]) for key in ("offset", "length"))
    weight = None if offset is None or length is None else at.get((offset, length))
    if weight is None or (weight.elements, weight.element) != _kind(tensor):
        raise ValueError(
            f"tensor {name!r} does not refer to the values of a weight of {PORTABLE} of its type and size; "
            "export the version again"
        )
    return weight


def _number(digits: str) -> int | None:
    return int(digits) if len(digits) <= LONGEST_NUMBER and digits.isascii() and digits.isdecimal() else None


def _kind(tensor: memoryview) -> tuple[int, int] | None:
    """The number of elements of a tensor, and their type; None if it has too many dimensions."""
    element, shape = onnx_subgraph.tensor_type(tensor)
    return (math.prod(shape), element) if len(shape) <= MOST_DIMENSIONS else None


def _without_reference(tensor: memoryview) -> bytes:
    return b"".join(part.whole for part in fields(tensor) if part.number not in (TENSOR_EXTERNAL, TENSOR_LOCATION))


def _all(message: memoryview, number: int) -> list[Field]:
    return [field for field in fields(message) if field.number == number]
