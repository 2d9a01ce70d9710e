"""Reads and edits ONNX models: extracts the part on which given outputs depend, and lists nodes and weights.

ONNX Runtime runs every node of a session, even if only some outputs are requested, so proposals without the RoI head
need a session of their own. This module reads the protobuf wire format and copies the needed fields unchanged. The
`onnx` package would add 20 MB and half a second of start-up time, and the service has no other use for it.

The field numbers are defined in onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE_INFO = 1, 5, 11, 12, 13
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS = 6, 11
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_TYPE_ELEMENT, TENSOR_TYPE_SHAPE = 1, 2, 1, 1, 2
SHAPE_DIMENSION, DIMENSION_VALUE = 1, 1
TENSOR_DIMENSIONS, TENSOR_ELEMENT, TENSOR_NAME, TENSOR_RAW, TENSOR_ENTRY, TENSOR_LOCATION = 1, 2, 8, 9, 13, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
EXTERNAL = 1
UINT8, INT64 = 2, 7  # TensorProto.DataType


class Field(NamedTuple):
    """One field of a message: its number, its payload, its value if it is a varint, and all its bytes with the tag."""

    number: int
    payload: memoryview
    varint: int
    whole: memoryview


class Node(NamedTuple):
    """One operation of a graph, with the names of the tensors that it reads and writes."""

    operator: str
    inputs: list[str]
    outputs: list[str]


def extract(model: bytes, outputs: Sequence[str]) -> bytes:
    """A copy of `model` with only the nodes and initializers that `outputs` depend on.

    Raises ValueError if an output is missing or the bytes are not an ONNX model.
    """
    return _with_graph(model, _extract_graph(_graph(model), outputs))


def nodes(model: bytes) -> list[Node]:
    """The operations of the graph, in the order of the file, in which each tensor is written before it is read."""
    return [
        Node(_name(node, NODE_OPERATOR), list(_read_by(node)), _strings(node, NODE_OUTPUT))
        for node in _payloads(_graph(model), GRAPH_NODE)
    ]


class Skeleton(NamedTuple):
    """A model without the values of its weights, from which ONNX Runtime can tell the shape of every tensor.

    The large initializers are inputs, because a session can be opened without their values. All tensors are outputs.
    """

    graph: bytes
    rest: bytes

    def with_inputs(self, inputs: Mapping[str, tuple[int, Sequence[int]]]) -> bytes:
        """The model with the missing inputs, given by element type and shape."""
        added = b"".join(_message(GRAPH_INPUT, _value_info(name, *inputs[name])) for name in inputs)
        return self.rest + _message(MODEL_GRAPH, self.graph + added)


def skeleton(model: bytes, largest: int) -> Skeleton:
    """`model` without its inputs, and without the values of initializers with more bytes than `largest`."""
    parts: list[bytes | memoryview] = []
    for field in _fields(_graph(model)):
        if field.number == GRAPH_NODE:
            parts.append(field.whole)
            written = _strings(field.payload, NODE_OUTPUT)
            parts.extend(_message(GRAPH_OUTPUT, _message(VALUE_NAME, name.encode())) for name in written)
        elif field.number == GRAPH_INITIALIZER and len(field.payload) > largest:
            name = _name(field.payload, TENSOR_NAME)
            parts.append(_message(GRAPH_INPUT, _value_info(name, *_tensor_type(field.payload))))
        elif field.number not in (GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE_INFO):
            parts.append(field.whole)
    return Skeleton(b"".join(parts), _without_graph(model))


class Weight(NamedTuple):
    """The values of an initializer: its element type (TensorProto.DataType), shape and little-endian bytes."""

    element: int
    shape: list[int]
    values: memoryview


def without_weights(model: bytes, smallest: int, elements: Collection[int]) -> tuple[bytes, dict[str, Weight]]:
    """`model` without the values of its large initializers, and these values by name.

    In the model each of them refers to a file that does not exist, so a session can be opened only if it is given the
    values (`SessionOptions.add_external_initializers`).

    smallest  bytes of the smallest initializer to take out
    elements  the element types to take out
    """
    taken: dict[str, Weight] = {}
    parts: list[bytes | memoryview] = []
    for field in _fields(_graph(model)):
        values = next(_payloads(field.payload, TENSOR_RAW), None) if field.number == GRAPH_INITIALIZER else None
        if values is None or len(values) < smallest or _tensor_type(field.payload)[0] not in elements:
            parts.append(field.whole)
            continue
        taken[_name(field.payload, TENSOR_NAME)] = Weight(*_tensor_type(field.payload), values)
        kept = b"".join(part.whole for part in _fields(field.payload) if part.number != TENSOR_RAW)
        place = {"location": "given to the session", "offset": "0", "length": str(len(values))}
        entries = b"".join(_message(TENSOR_ENTRY, _entry(key, value)) for key, value in place.items())
        elsewhere = _varint(TENSOR_LOCATION << 3 | VARINT) + _varint(EXTERNAL)
        parts.append(_message(GRAPH_INITIALIZER, kept + entries + elsewhere))
    return _with_graph(model, b"".join(parts)), taken


def _entry(key: str, value: str) -> bytes:
    return _message(ENTRY_KEY, key.encode()) + _message(ENTRY_VALUE, value.encode())


def _graph(model: bytes) -> memoryview:
    graphs = list(_payloads(memoryview(model), MODEL_GRAPH))
    if len(graphs) != 1:
        raise ValueError("not an ONNX model: it has no graph")
    return graphs[0]


def _with_graph(model: bytes, graph: bytes) -> bytes:
    return _without_graph(model) + _message(MODEL_GRAPH, graph)


def _without_graph(model: bytes) -> bytes:
    return b"".join(field.whole for field in _fields(memoryview(model)) if field.number != MODEL_GRAPH)


def _tensor_type(tensor: memoryview) -> tuple[int, list[int]]:
    """The element type and the shape of an initializer."""
    element, shape = 0, []
    for field in _fields(tensor):
        if field.number == TENSOR_ELEMENT:
            element = field.varint
        elif field.number == TENSOR_DIMENSIONS and len(field.payload) and field.whole[0] & 7 == LENGTH_DELIMITED:
            position = 0  # packed: all numbers in one field
            while position < len(field.payload):
                size, position = _read_varint(field.payload, position)
                shape.append(size)
        elif field.number == TENSOR_DIMENSIONS:
            shape.append(field.varint)
    return element, shape


def _value_info(name: str, element: int, shape: Sequence[int]) -> bytes:
    dimensions = b"".join(
        _message(SHAPE_DIMENSION, _varint(DIMENSION_VALUE << 3 | VARINT) + _varint(size)) for size in shape
    )
    tensor = _varint(TENSOR_TYPE_ELEMENT << 3 | VARINT) + _varint(element) + _message(TENSOR_TYPE_SHAPE, dimensions)
    return _message(VALUE_NAME, name.encode()) + _message(VALUE_TYPE, _message(TYPE_TENSOR, tensor))


def is_whole(model: bytes) -> bool:
    """Whether the bytes are those of a complete model, as far as its outer structure shows."""
    try:
        numbers = [field.number for field in _fields(memoryview(model))]
    except ValueError:
        return False
    return MODEL_GRAPH in numbers and 0 not in numbers  # 0 is the tag of space that a copy reserved but did not fill


def refuse_external_data(model: bytes) -> None:
    """Raises ValueError if a tensor's values are in another file, whose path could lead out of the model store."""
    for field in _fields(memoryview(model)):
        if field.number == MODEL_GRAPH:
            for tensor in _payloads(field.payload, GRAPH_INITIALIZER):
                if any(part.number == TENSOR_LOCATION and part.varint == EXTERNAL for part in _fields(tensor)):
                    raise ValueError(
                        f"tensor {_name(tensor, TENSOR_NAME)!r} is stored outside the file; save it inside"
                    )


def _extract_graph(graph: memoryview, outputs: Sequence[str]) -> bytes:
    fields = list(_fields(graph))
    nodes = [field.payload for field in fields if field.number == GRAPH_NODE]
    producer = {name: index for index, node in enumerate(nodes) for name in _strings(node, NODE_OUTPUT)}

    declared = {_name(field.payload, VALUE_NAME) for field in fields if field.number == GRAPH_OUTPUT}
    if missing := [name for name in outputs if name not in declared]:
        raise ValueError(f"the graph has no output {', '.join(missing)}")

    kept: set[int] = set()
    needed = set(outputs)
    waiting = list(outputs)
    while waiting:
        index = producer.get(waiting.pop())
        if index is None or index in kept:
            continue
        kept.add(index)
        fresh = set(_read_by(nodes[index])) - needed
        needed |= fresh
        waiting.extend(fresh)
    for index in kept:  # to keep the type information of their other outputs too
        needed.update(_strings(nodes[index], NODE_OUTPUT))

    parts = []
    position = 0
    for field in fields:
        if field.number == GRAPH_NODE:
            wanted = position in kept
            position += 1
        elif field.number == GRAPH_INITIALIZER:
            wanted = _name(field.payload, TENSOR_NAME) in needed
        elif field.number == GRAPH_VALUE_INFO:
            wanted = _name(field.payload, VALUE_NAME) in needed
        elif field.number == GRAPH_OUTPUT:
            wanted = _name(field.payload, VALUE_NAME) in outputs
        else:
            wanted = True
        if wanted:
            parts.append(field.whole)
    return b"".join(parts)


def _read_by(node: memoryview) -> Iterator[str]:
    """The names that a node reads.

    The body of a loop or branch may read any name of the surrounding graph, so every name in it counts. A superfluous
    node only costs time, but a missing one breaks the model.
    """
    yield from _strings(node, NODE_INPUT)
    for attribute in _payloads(node, NODE_ATTRIBUTE):
        for number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            for body in _payloads(attribute, number):
                for output in _payloads(body, GRAPH_OUTPUT):
                    yield _name(output, VALUE_NAME)
                for inner in _payloads(body, GRAPH_NODE):
                    yield from _read_by(inner)


def _payloads(message: memoryview, number: int) -> Iterator[memoryview]:
    return (field.payload for field in _fields(message) if field.number == number)


def _strings(message: memoryview, number: int) -> list[str]:
    return [
        str(payload, "utf-8") for payload in _payloads(message, number) if len(payload)
    ]  # "" stands for an omitted optional input


def _name(message: memoryview, number: int) -> str:
    return next((str(payload, "utf-8") for payload in _payloads(message, number)), "")


def _fields(message: memoryview) -> Iterator[Field]:
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        value = 0
        begin = position
        if wire_type == VARINT:
            value, position = _read_varint(message, position)
        elif wire_type == LENGTH_DELIMITED:
            length, begin = _read_varint(message, position)
            position = begin + length
        elif wire_type in (FIXED32, FIXED64):
            position += 4 if wire_type == FIXED32 else 8
        else:
            raise ValueError("not an ONNX model: the bytes are not a protobuf message")
        if position > len(message):
            raise ValueError("not an ONNX model: it is cut short")
        yield Field(number, message[begin:position], value, message[start:position])


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("not an ONNX model: it is cut short")


def _message(number: int, payload: bytes) -> bytes:
    """A field that holds a message or a string."""
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
