"""Reads and edits ONNX models: extracts the part on which given outputs depend, and lists nodes and weights.

ONNX Runtime runs every node of a session, even if only some outputs are requested, so proposals without the RoI head
need a session of their own. This module copies the needed fields unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from service.engine.protobuf import (
    ATTRIBUTE_GRAPH,
    ATTRIBUTE_GRAPHS,
    ATTRIBUTE_SPARSE,
    ATTRIBUTE_SPARSES,
    ATTRIBUTE_TENSOR,
    ATTRIBUTE_TENSORS,
    DIMENSION_VALUE,
    ENTRY_KEY,
    ENTRY_VALUE,
    EXTERNAL,
    FUNCTION_NODE,
    GRAPH_INITIALIZER,
    GRAPH_INPUT,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    GRAPH_SPARSE,
    GRAPH_VALUE_INFO,
    LENGTH_DELIMITED,
    MODEL_FUNCTION,
    MODEL_GRAPH,
    NODE_ATTRIBUTE,
    NODE_INPUT,
    NODE_OPERATOR,
    NODE_OUTPUT,
    SHAPE_DIMENSION,
    SPARSE_INDICES,
    SPARSE_VALUES,
    TENSOR_DIMENSIONS,
    TENSOR_ELEMENT,
    TENSOR_EXTERNAL,
    TENSOR_LOCATION,
    TENSOR_NAME,
    TENSOR_RAW,
    TENSOR_TYPE_ELEMENT,
    TENSOR_TYPE_SHAPE,
    TYPE_TENSOR,
    VALUE_NAME,
    VALUE_TYPE,
    VARINT,
    encode,
    encode_varint,
    fields,
    payloads,
    read_varint,
    string,
    strings,
)


class Node(NamedTuple):
    """One operation of a graph, with the names of the tensors that it reads and writes."""

    operator: str
    inputs: list[str]
    outputs: list[str]


def extract(model: bytes, outputs: Sequence[str]) -> bytes:
    """A copy of `model` with only the nodes and initializers that `outputs` depend on.

    Raises ValueError if an output is missing or the bytes are not an ONNX model.
    """
    return with_graph(model, _extract_graph(graph_of(model), outputs))


def nodes(model: bytes) -> list[Node]:
    """The operations of the graph, in the order of the file, in which each tensor is written before it is read."""
    return [
        Node(string(node, NODE_OPERATOR), list(_read_by(node)), strings(node, NODE_OUTPUT))
        for node in payloads(graph_of(model), GRAPH_NODE)
    ]


class Skeleton(NamedTuple):
    """A model without the values of its weights, from which ONNX Runtime can tell the shape of every tensor.

    The large initializers are inputs, because a session can be opened without their values. All tensors are outputs.
    """

    graph: bytes
    rest: bytes

    def with_inputs(self, inputs: Mapping[str, tuple[int, Sequence[int]]]) -> bytes:
        """The model with the missing inputs, given by element type and shape."""
        added = b"".join(encode(GRAPH_INPUT, _value_info(name, *inputs[name])) for name in inputs)
        return self.rest + encode(MODEL_GRAPH, self.graph + added)


def skeleton(model: bytes, largest: int) -> Skeleton:
    """`model` without its inputs, and without the values of initializers with more bytes than `largest`."""
    parts: list[bytes | memoryview] = []
    for field in fields(graph_of(model)):
        if field.number == GRAPH_NODE:
            parts.append(field.whole)
            written = strings(field.payload, NODE_OUTPUT)
            parts.extend(encode(GRAPH_OUTPUT, encode(VALUE_NAME, name.encode())) for name in written)
        elif field.number == GRAPH_INITIALIZER and len(field.payload) > largest:
            name = string(field.payload, TENSOR_NAME)
            parts.append(encode(GRAPH_INPUT, _value_info(name, *tensor_type(field.payload))))
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
    for field in fields(graph_of(model)):
        values = next(payloads(field.payload, TENSOR_RAW), None) if field.number == GRAPH_INITIALIZER else None
        if values is None or len(values) < smallest or tensor_type(field.payload)[0] not in elements:
            parts.append(field.whole)
            continue
        taken[string(field.payload, TENSOR_NAME)] = Weight(*tensor_type(field.payload), values)
        kept = b"".join(part.whole for part in fields(field.payload) if part.number != TENSOR_RAW)
        place = {"location": "given to the session", "offset": "0", "length": str(len(values))}
        entries = b"".join(encode(TENSOR_EXTERNAL, _entry(key, value)) for key, value in place.items())
        elsewhere = encode_varint(TENSOR_LOCATION << 3 | VARINT) + encode_varint(EXTERNAL)
        parts.append(encode(GRAPH_INITIALIZER, kept + entries + elsewhere))
    return with_graph(model, b"".join(parts)), taken


def _entry(key: str, value: str) -> bytes:
    return encode(ENTRY_KEY, key.encode()) + encode(ENTRY_VALUE, value.encode())


def graph_of(model: bytes) -> memoryview:
    """The graph of a model. Raises ValueError if the bytes are not an ONNX model."""
    graphs = list(payloads(memoryview(model), MODEL_GRAPH))
    if len(graphs) != 1:
        raise ValueError("not an ONNX model: it has no graph")
    return graphs[0]


def with_graph(model: bytes, graph: bytes) -> bytes:
    """`model` with another graph."""
    return _without_graph(model) + encode(MODEL_GRAPH, graph)


def _without_graph(model: bytes) -> bytes:
    return b"".join(field.whole for field in fields(memoryview(model)) if field.number != MODEL_GRAPH)


def tensor_type(tensor: memoryview) -> tuple[int, list[int]]:
    """The element type and the shape of an initializer."""
    element, shape = 0, []
    for field in fields(tensor):
        if field.number == TENSOR_ELEMENT:
            element = field.varint
        elif field.number == TENSOR_DIMENSIONS and len(field.payload) and field.whole[0] & 7 == LENGTH_DELIMITED:
            position = 0  # packed: all numbers in one field
            while position < len(field.payload):
                size, position = read_varint(field.payload, position)
                shape.append(size)
        elif field.number == TENSOR_DIMENSIONS:
            shape.append(field.varint)
    return element, shape


def _value_info(name: str, element: int, shape: Sequence[int]) -> bytes:
    dimensions = b"".join(
        encode(SHAPE_DIMENSION, encode_varint(DIMENSION_VALUE << 3 | VARINT) + encode_varint(size)) for size in shape
    )
    tensor = (
        encode_varint(TENSOR_TYPE_ELEMENT << 3 | VARINT)
        + encode_varint(element)
        + encode(TENSOR_TYPE_SHAPE, dimensions)
    )
    return encode(VALUE_NAME, name.encode()) + encode(VALUE_TYPE, encode(TYPE_TENSOR, tensor))


def is_whole(model: bytes) -> bool:
    """Whether the bytes are those of a complete model, as far as its outer structure shows."""
    try:
        numbers = [field.number for field in fields(memoryview(model))]
    except ValueError:
        return False
    return MODEL_GRAPH in numbers and 0 not in numbers  # 0 is the tag of space that a copy reserved but did not fill


def refuse_external_data(model: bytes) -> None:
    """Raises ValueError if a tensor's values are in another file, whose path could lead out of the model store."""
    for tensor in _all_tensors(model):
        if is_external(tensor):
            raise ValueError(f"tensor {string(tensor, TENSOR_NAME)!r} is stored outside the file; save it inside")


def is_external(tensor: memoryview) -> bool:
    return any(part.number == TENSOR_LOCATION and part.varint == EXTERNAL for part in fields(tensor))


def _all_tensors(model: bytes) -> Iterator[memoryview]:
    """Every tensor of a model: also those of constants, of the bodies of loops and branches, and of functions.

    A list replaces recursion, so that no depth of nesting can exhaust the stack.
    """
    waiting: list[tuple[dict[int, str], memoryview]] = [(_PARTS_OF["model"], memoryview(model))]
    while waiting:
        parts, holder = waiting.pop()
        for field in fields(holder):
            kind = parts.get(field.number)
            if kind == "tensor":
                yield field.payload
            elif kind:
                waiting.append((_PARTS_OF[kind], field.payload))


# Which fields of a message lead to tensors, and what they hold.
_PARTS_OF: dict[str, dict[int, str]] = {
    "model": {MODEL_GRAPH: "graph", MODEL_FUNCTION: "function"},
    "function": {FUNCTION_NODE: "node"},
    "graph": {GRAPH_NODE: "node", GRAPH_INITIALIZER: "tensor", GRAPH_SPARSE: "sparse"},
    "node": {NODE_ATTRIBUTE: "attribute"},
    "attribute": {
        ATTRIBUTE_TENSOR: "tensor",
        ATTRIBUTE_TENSORS: "tensor",
        ATTRIBUTE_GRAPH: "graph",
        ATTRIBUTE_GRAPHS: "graph",
        ATTRIBUTE_SPARSE: "sparse",
        ATTRIBUTE_SPARSES: "sparse",
    },
    "sparse": {SPARSE_VALUES: "tensor", SPARSE_INDICES: "tensor"},
}


def _extract_graph(graph: memoryview, outputs: Sequence[str]) -> bytes:
    everything = list(fields(graph))
    nodes = [field.payload for field in everything if field.number == GRAPH_NODE]
    producer = {name: index for index, node in enumerate(nodes) for name in strings(node, NODE_OUTPUT)}

    declared = {string(field.payload, VALUE_NAME) for field in everything if field.number == GRAPH_OUTPUT}
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
        needed.update(strings(nodes[index], NODE_OUTPUT))

    parts = []
    position = 0
    for field in everything:
        if field.number == GRAPH_NODE:
            wanted = position in kept
            position += 1
        elif field.number == GRAPH_INITIALIZER:
            wanted = string(field.payload, TENSOR_NAME) in needed
        elif field.number == GRAPH_VALUE_INFO:
            wanted = string(field.payload, VALUE_NAME) in needed
        elif field.number == GRAPH_OUTPUT:
            wanted = string(field.payload, VALUE_NAME) in outputs
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
    yield from strings(node, NODE_INPUT)
    for attribute in payloads(node, NODE_ATTRIBUTE):
        for number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            for body in payloads(attribute, number):
                for output in payloads(body, GRAPH_OUTPUT):
                    yield string(output, VALUE_NAME)
                for inner in payloads(body, GRAPH_NODE):
                    yield from _read_by(inner)
