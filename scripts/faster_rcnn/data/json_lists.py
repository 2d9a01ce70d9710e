"""JSON documents that record the position of each list element, so that a fault in a large file has a line number.

`json.loads` does not report where a value was found. `JSONDecoder.raw_decode` decodes one value and returns where it
ends. This module walks through the outermost object and its lists, and leaves everything inside their values to
`raw_decode`. Elements are decoded a second time when they are read, which needs less memory than keeping all of them.
"""

import codecs
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faster_rcnn.data.syntax_errors import DocumentError

_BLANKS = re.compile(r"[ \t\n\r]*")  # JSON's white space (RFC 8259, section 2)
_DECODER = json.JSONDecoder()


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise RepeatedKeyError(next(name for name, count in counts.items() if count > 1))
    return members


class RepeatedKeyError(ValueError):
    """An object has a key twice. JSON does not say which of the two values counts (RFC 8259, section 4)."""


_STRICT_DECODER = json.JSONDecoder(object_pairs_hook=_members)


@dataclass(frozen=True)
class JSONList:
    """A list in a document.  text: the document;  starts: the offset of each element in the text, as int64."""

    text: str
    starts: "array[int]"  # a list of a million numbers would need five times the memory

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


def read_text(file: Path) -> str:
    """The text of a JSON file, in UTF-8 or, with a byte order mark, in UTF-16 or UTF-32.

    Raises ValueError if it is not text.
    """
    data = file.read_bytes()
    marks = {
        codecs.BOM_UTF32_LE: "utf-32",
        codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }
    encoding = next((encoding for mark, encoding in marks.items() if data.startswith(mark)), "utf-8-sig")
    return data.decode(encoding)


def decode_document(text: str) -> Any:
    """Decodes a document; if it is a list, or an object with lists as members, these lists become `JSONList`s.

    Raises ValueError (json.JSONDecodeError with line and column, in most cases) if `text` is not JSON or an object has
    a key twice, RecursionError if it is nested too deeply.
    """
    start = _skip_blanks(text, 0)
    if text.startswith("{", start):
        document, position = _object(text, start)
    else:
        document, position = _value(text, start)
    position = _skip_blanks(text, position)
    if position < len(text):
        if text[position - 1] in "\r\n" and text[position] in "{[":
            raise DocumentError(
                f"{_line(text, position)} begins another value, so it is JSON lines, or several documents in one file"
            )
        raise json.JSONDecodeError("Extra data", text, position)
    return document


def _line(text: str, position: int) -> str:
    return f"line {text.count(chr(10), 0, position) + 1}"


def _object(text: str, position: int) -> tuple[dict[str, Any], int]:
    """The object that begins at `position`, and where it ends."""
    members: dict[str, Any] = {}
    position = _skip_blanks(text, position + 1)
    closed = text.startswith("}", position)
    while not closed:
        if not text.startswith('"', position):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, position)
        start = position
        name, position = _DECODER.raw_decode(text, position)
        if name in members:
            raise DocumentError(f"{_line(text, start)} repeats the key {name!r}")
        position = _skip_blanks(text, position)
        if not text.startswith(":", position):
            raise json.JSONDecodeError("Expecting ':' delimiter", text, position)
        position = _skip_blanks(text, position + 1)
        members[name], position = _value(text, position)
        closed, position = _next(text, position, "}")
    return members, position + 1


def _value(text: str, position: int) -> tuple[Any, int]:
    return _list(text, position) if text.startswith("[", position) else _decode(text, position)


def _decode(text: str, position: int) -> tuple[Any, int]:
    """The value that begins at `position`, and where it ends."""
    try:
        return _STRICT_DECODER.raw_decode(text, position)
    except RepeatedKeyError as error:
        raise DocumentError(f"the value at {_line(text, position)} has the key {error.args[0]!r} twice") from None


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
    starts = array("q")
    position = _skip_blanks(text, position + 1)
    closed = text.startswith("]", position)
    while not closed:
        starts.append(position)
        _, position = _decode(text, position)
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
