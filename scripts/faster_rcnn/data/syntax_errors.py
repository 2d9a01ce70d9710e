"""Says in plain words why a file of annotations is not JSON or XML. The libraries' own messages are not shown."""

import json

from lxml import etree

_JSON = {
    "Expecting value": "a value is missing",
    "Expecting property name enclosed in double quotes": "a key in double quotes is missing",
    "Expecting ':' delimiter": "the colon after a key is missing",
    "Expecting ',' delimiter": "a comma or a closing bracket is missing",
    "Illegal trailing comma before end of object": "a comma stands before a closing bracket",
    "Illegal trailing comma before end of array": "a comma stands before a closing bracket",
    "Invalid control character at": "a text holds a line break or another control character; write it as \\n or \\u…",
    "Invalid \\escape": "a backslash in a text is not doubled",
    "Invalid \\uXXXX escape": "\\u in a text is not followed by four hexadecimal digits",
    "Extra data": "something follows the end of the document",
    "Expecting a list": "the document is not a list",
}
_ERRORS = etree.ErrorTypes
_NOT_ESCAPED = "& or < stands in a text; write &amp; or &lt;"
_NOT_FINISHED = "the file ends inside an element, so it is cut short"
_WRONG_BYTES = (
    "a character is not allowed, or is not in the encoding that the file declares (UTF-8 if it declares none)"
)
_XML = {
    _ERRORS.ERR_TAG_NAME_MISMATCH: "an element is closed under another name",
    _ERRORS.ERR_TAG_NOT_FINISHED: _NOT_FINISHED,
    _ERRORS.ERR_GT_REQUIRED: _NOT_FINISHED,
    _ERRORS.ERR_LTSLASH_REQUIRED: _NOT_FINISHED,
    _ERRORS.ERR_INVALID_CHAR: _WRONG_BYTES,
    _ERRORS.ERR_INVALID_ENCODING: _WRONG_BYTES,
    _ERRORS.ERR_UNKNOWN_ENCODING: _WRONG_BYTES,
    _ERRORS.ERR_UNSUPPORTED_ENCODING: _WRONG_BYTES,
    _ERRORS.ERR_ENTITYREF_SEMICOL_MISSING: _NOT_ESCAPED,
    _ERRORS.ERR_NAME_REQUIRED: _NOT_ESCAPED,
    _ERRORS.ERR_UNDECLARED_ENTITY: _NOT_ESCAPED,
    _ERRORS.ERR_ATTRIBUTE_NOT_STARTED: "the value of an attribute has no quotes",
    _ERRORS.ERR_DOCUMENT_END: "something follows the outermost element",
}


class DocumentError(ValueError):
    """A document that this project refuses; the message is in plain words already."""


def json_fault(error: Exception) -> str:
    """A clause for what `json_lists` raises: where the document is not JSON, and why."""
    if isinstance(error, DocumentError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"its text is not in UTF-8 or, with a byte order mark, UTF-16 (byte {error.start + 1:,})"
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return "it has a number with too many digits"
    return _where_json_ends(error) or f"line {error.lineno}, column {error.colno}: {_json_words(error.msg)}"


def _json_words(message: str) -> str:
    return next((words for start, words in _JSON.items() if message.startswith(start)), "this is not JSON")


def _where_json_ends(error: json.JSONDecodeError) -> str:
    """A clause for a document that is something else from its first byte, or ends too early; "" for any other."""
    text = error.doc
    if not text.strip():
        return "it is empty"
    if text.lstrip().startswith("<"):
        return "it is HTML or XML, perhaps an error page"
    if text.startswith("version https://git-lfs"):
        return "it is a pointer of Git LFS, and `git lfs pull` gets the file"
    if error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()):
        return f"it ends in line {text.rstrip().count(chr(10)) + 1}, before it is complete, so it is cut short"
    return ""


def xml_fault(error: Exception, data: bytes) -> str:
    """A clause for what lxml raises for the bytes of a file. Its line is `xml_line`."""
    if not data.strip():
        return "it is empty"
    if data.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, and `git lfs pull` gets the file"
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<", b"\xff\xfe", b"\xfe\xff")):
        return "it does not begin with an element"
    code = error.code if isinstance(error, etree.XMLSyntaxError) else None
    return _XML.get(code, "this is not XML, or it is nested too deeply")


def xml_line(error: Exception) -> int:
    """The line in which a file is not XML, from 1."""
    return getattr(error, "lineno", None) or 1
