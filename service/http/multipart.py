"""Reads the one file of a form (multipart/form-data, RFC 7578).

python-multipart finds the parts; this module decides which form it takes. A form that two programs could read in two
ways is refused: a second part, a header or a parameter that is given twice, text before the first boundary, an end
without the final boundary, folded headers. Text after the final boundary is ignored.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.http.problems import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELDS = (b"image", b"file")
CURL = "curl -F image=@image.jpg"
MAX_HEADERS = 8  # of a part
MAX_HEADER_BYTES = 4096  # of one header; a file name may have 255 characters
LONGEST_NAME = 40  # characters of a client's name that an answer repeats
LONGEST_BOUNDARY = 70  # characters (RFC 2046, section 5.1.1)

# A quotation without an end extends to the end of the value. If it did not match, a value full of escaped quotation
# marks would be searched from each of them again, which takes seconds.
_QUOTED = re.compile(rb'(?s)"(?:[^"\\]|\\.?)*(?:"|\Z)')
_PARAMETER_NAME = re.compile(rb";[ \t]*([^=; \t]+)[ \t]*=")
_UNENCODED = (b"binary", b"8bit", b"7bit")

# It logs every fault of a form as a warning, so that a client could fill the log.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


async def read(content_type: str, chunks: AsyncIterator[bytes]) -> bytes:
    """The file in a form that arrives in `chunks`; its name and media type do not matter. Raises Problem (400)."""
    part = _FilePart()
    try:
        parser = MultipartParser(
            _boundary(content_type), part.callbacks(), max_header_count=MAX_HEADERS, max_header_size=MAX_HEADER_BYTES
        )
        async for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise _unreadable() from error
    return part.file()


def parameter_names(value: bytes) -> list[bytes]:
    """The names of a header's parameters in lower case, such as [b"name", b"filename*"], with repetitions."""
    return [name.lower() for name in _PARAMETER_NAME.findall(_QUOTED.sub(b"", value))]


def printable(name: str) -> str:
    """The start of a name that a client has sent, in quotation marks, without characters that could mislead."""
    shown = "".join(letter if letter.isprintable() and letter not in '"<>&' else "?" for letter in name[:LONGEST_NAME])
    return f'"{shown}…"' if len(name) > LONGEST_NAME else f'"{shown}"'


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= LONGEST_BOUNDARY or parameter_names(content_type.encode()).count(b"boundary") != 1:
        raise Problem(
            400,
            "bad_multipart",
            f"The Content-Type of a multipart body must have one boundary of 1 to {LONGEST_BOUNDARY} characters. "
            f"For example: {CURL}",
        )
    return boundary


class _FilePart:
    """The only part of a form, filled by the parser's callbacks."""

    def __init__(self) -> None:
        self._parts = 0
        self._complete = False
        self._headers: dict[bytes, bytes] = {}
        self._name = b""
        self._value = b""
        self._pieces: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_name,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check_headers,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    def file(self) -> bytes:
        """Its bytes. Raises Problem if the form has no part or no end."""
        if not self._complete:
            raise _unreadable()
        if not self._parts:
            raise _not_one_file()
        return b"".join(self._pieces)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise _not_one_file()

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        name = self._name.lower()
        if name in self._headers:
            raise _unreadable()
        self._headers[name] = self._value.strip(b" \t")
        self._name = self._value = b""

    def _check_headers(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        kind, options = parse_options_header(disposition)
        names = parameter_names(disposition)
        if kind != b"form-data" or b"name" not in options or len(set(names)) < len(names):
            raise _unreadable()
        field = options[b"name"]
        if field not in FIELDS:
            raise _not_one_file(f" It has the field {printable(field.decode(errors='replace'))}.")
        # RFC 7578 forbids filename* but browsers and libraries send it, some without filename. A part without either
        # is a file if its media type says so.
        kind_of_part = parse_options_header(self._headers.get(b"content-type"))[0]
        named = any(name == b"filename" or name.startswith(b"filename*") for name in names)
        if not named and kind_of_part != b"application/octet-stream" and not kind_of_part.startswith(b"image/"):
            detail = f"The field {field.decode()} holds text, not a file. For example: {CURL}"
            raise Problem(400, "bad_multipart", detail)
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in _UNENCODED:
            detail = f"The file must not have a Content-Transfer-Encoding. Send its own bytes; for example: {CURL}"
            raise Problem(400, "bad_multipart", detail)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        self._complete = True


def _unreadable() -> Problem:
    detail = f"The multipart body cannot be read as a form with one file in the field image. For example: {CURL}"
    return Problem(400, "bad_multipart", detail)


def _not_one_file(found: str = "") -> Problem:
    """`found`: a sentence about what the form has instead."""
    return Problem(
        400,
        "bad_multipart",
        f"The form must have one field, image, with one file; parameters belong in the query.{found} "
        f"For example: {CURL}",
    )
