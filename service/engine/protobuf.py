"""Reads and writes the protobuf wire format, in which ONNX models are stored.

The service needs a few fields of a model and copies all others unchanged. The `onnx` package would add 20 MB and half a
second of start-up time.

The field numbers are defined in onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5

MODEL_GRAPH, MODEL_FUNCTION = 7, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE_INFO, GRAPH_SPARSE = 1, 5, 11, 12, 13, 15
FUNCTION_NODE = 7
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES, SPARSE_VALUES, SPARSE_INDICES = 22, 23, 1, 2
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_TYPE_ELEMENT, TENSOR_TYPE_SHAPE = 1, 2, 1, 1, 2
SHAPE_DIMENSION, DIMENSION_VALUE = 1, 1
TENSOR_DIMENSIONS, TENSOR_ELEMENT, TENSOR_NAME, TENSOR_RAW, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 2, 8, 9, 13, 14
EXTERNAL = 1  # a value of TENSOR_LOCATION
ENTRY_KEY, ENTRY_VALUE = 1, 2  # of TENSOR_EXTERNAL
UINT8, INT64 = 2, 7  # TensorProto.DataType


class Field(NamedTuple):
    """One field of a message.

    number   the field's number
    payload  its bytes without tag and length
    varint   its value if it is a varint
    whole    all its bytes with the tag
    begin    where the payload begins in the message
    """

    number: int
    payload: memoryview
    varint: int
    whole: memoryview
    begin: int


def payloads(message: memoryview, number: int) -> Iterator[memoryview]:
    """The payloads of the fields with a number. All functions that read raise ValueError for malformed bytes."""
    return (field.payload for field in fields(message) if field.number == number)


def strings(message: memoryview, number: int) -> list[str]:
    """The texts of a repeated field. An empty one stands for an omitted optional input and is left out."""
    return [str(payload, "utf-8") for payload in payloads(message, number) if len(payload)]


def string(message: memoryview, number: int) -> str:
    """The text of a field, or "" if the message lacks it."""
    return next((str(payload, "utf-8") for payload in payloads(message, number)), "")


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, in the order of the bytes."""
    position = 0
    while position < len(message):
        start = position
        tag, position = read_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        value = 0
        begin = position
        if wire_type == VARINT:
            value, position = read_varint(message, position)
        elif wire_type == LENGTH_DELIMITED:
            length, begin = read_varint(message, position)
            position = begin + length
        elif wire_type in (FIXED32, FIXED64):
            position += 4 if wire_type == FIXED32 else 8
        else:
            raise ValueError("not an ONNX model: the bytes are not a protobuf message")
        if position > len(message):
            raise ValueError("not an ONNX model: it is cut short")
        yield Field(number, message[begin:position], value, message[start:position], begin)


def read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number at `position`, and the position after it."""
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("not an ONNX model: it is cut short")


def encode(number: int, payload: bytes) -> bytes:
    """A field that holds a message or a string."""
    return encode_varint(number << 3 | LENGTH_DELIMITED) + encode_varint(len(payload)) + payload


def encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
