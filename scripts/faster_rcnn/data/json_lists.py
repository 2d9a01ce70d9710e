"""JSON documents that record the position of each list element, so that a fault in a large file has a line number.

`json.loads` does not report where a value was found. `JSONDecoder.raw_decode` decodes one value and returns where it
ends. This module walks through the outermost object and its lists, and leaves everything inside their values to
`raw_decode`. Elements are decoded a second time when they are read, which needs less memory than keeping all of them.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_BLANKS = re.compile(r"[ \t\n\r]*")  # JSON's white space (RFC 8259, section 2)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class JSONList:
    """A list in a document.  text: the document;  starts: the offset of each element in the text."""

    text: str
    starts: list[int]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        """Each element, decoded, and its place as `line:column`, both from 1."""
        line, line_start, previous = 1, 0, 0
        for start in self.starts:
            if newlines := self.text.count("\n", previous, start):
                line += newlines
                line_start = self.text.rindex("\n", previous, start) + 1
            previous = start
            yield _DECODER.raw_decode(self.text, start)[0], f"{line}:{start - line_start + 1}"


def decode_members(text: str) -> dict[str, Any]:
    """Decodes the members of the outermost object; lists become `JSONList`s.

    Returns no members if the document is not an object.

    Raises ValueError (json.JSONDecodeError with line and column, in most cases) if `text` is not JSON, RecursionError
    if it is nested too deeply.
    """
    position = _skip_blanks(text, 0)
    if not text.startswith("{", position):
        json.loads(text)
        return {}
    members: dict[str, Any] = {}
    position = _skip_blanks(text, position + 1)
    closed = text.startswith("}", position)
    while not closed:
        if not text.startswith('"', position):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, position)
        name, position = _DECODER.raw_decode(text, position)
        position = _skip_blanks(text, position)
        if not text.startswith(":", position):
            raise json.JSONDecodeError("Expecting ':' delimiter", text, position)
        position = _skip_blanks(text, position + 1)
        members[name], position = (
            _list(text, position) if text.startswith("[", position) else _DECODER.raw_decode(text, position)
        )
        closed, position = _next(text, position, "}")
    position = _skip_blanks(text, position + 1)
    if position < len(text):
        raise json.JSONDecodeError("Extra data", text, position)
    return members


def decode_list(text: str) -> JSONList:
    """Decodes a document that is a list.

    Raises ValueError if `text` is not JSON or not a list, RecursionError if it is nested too deeply.
    """
    position = _skip_blanks(text, 0)
    if not text.startswith("[", position):
        raise json.JSONDecodeError("Expecting a list", text, position)
    elements, position = _list(text, position)
    if (position := _skip_blanks(text, position)) < len(text):
        raise json.JSONDecodeError("Extra data", text, position)
    return elements


def _list(text: str, position: int) -> tuple[JSONList, int]:
    """The list that begins at `position`, and where it ends."""
    starts: list[int] = []
    position = _skip_blanks(text, position + 1)
    closed = text.startswith("]", position)
    while not closed:
        starts.append(position)
        _, position = _DECODER.raw_decode(text, position)
        closed, position = _next(text, position, "]")
    return JSONList(text, starts), position + 1


def _next(text: str, position: int, end: str) -> tuple[bool, int]:
    """What follows a value: True and the position of `end`, or False and the position of the next value."""
    position = _skip_blanks(text, position)
    if text.startswith(end, position):
        return True, position
    if not text.startswith(",", position):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
    return False, _skip_blanks(text, position + 1)


def _skip_blanks(text: str, position: int) -> int:
    found = _BLANKS.match(text, position)
    assert found is not None  # the pattern matches the empty string
    return found.end()
