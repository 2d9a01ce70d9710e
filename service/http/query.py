"""Reads the query of a request, strictly: every parameter has one meaning, or the request is refused.

The grammar, which is narrower than that of most libraries:

- `&` separates parameters; `;` does not. Empty pieces between two `&` are skipped.
- Names and values are percent-encoded UTF-8 without control characters; `+` is a space.
- Each parameter has a name and a value, and appears once; only a parameter whose type is a list may be repeated.
- Whole numbers are decimal digits without a sign or leading zeros. Other numbers may have a decimal point and an
  exponent: 0.5, .5, 5e-1.
- Flags are true or false, in any case, or 1 or 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError

from service.http.problems import Problem

LONGEST_CACHED_QUERY = 256  # bytes; bounds the memory of the cache
CACHED_QUERIES = 512
MAX_PARAMETERS = 1000
MAX_LISTED = 10  # bad parameters listed in one problem
LONGEST_NAME = 100  # characters of a parameter's name that a problem quotes

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_NUMBER = re.compile(r"(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}

Query = TypeVar("Query", bound=BaseModel)


def parse(kind: type[Query], query: bytes) -> Query:
    """The parameters in `query`, which is still percent-encoded.

    Raises Problem (422) that names every bad or unknown parameter, in the order in which they are sent.
    """
    return _parse_cached(kind, query) if len(query) <= LONGEST_CACHED_QUERY else _parse(kind, query)


def _parse(kind: type[Query], query: bytes) -> Query:
    if query.count(b"&") >= MAX_PARAMETERS:
        raise Problem(422, "parameter", f"The query has more than {MAX_PARAMETERS:,} parameters. Send fewer.")
    schemas = parameters(kind)
    values: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for pair in filter(None, query.split(b"&")):
        raw_name, _, raw_value = pair.partition(b"=")
        try:
            name = _decoded(raw_name)
        except ValueError as fault:
            faults[raw_name.decode("ascii", "replace")] = f"the name {fault}"
            continue
        if fault_found := _add(values, name, raw_value, schemas):
            faults.setdefault(name, fault_found)
    if faults:
        raise _problem(faults)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        out_of_range = [str(fault["loc"][0]) for fault in error.errors(include_url=False)]
    raise _problem({name: f"must be {expected(schemas[name])}" for name in out_of_range})


_parse_cached = lru_cache(CACHED_QUERIES)(_parse)  # most clients repeat the same query


@cache
def parameters(kind: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The JSON schema of every parameter, by name. That of an optional parameter does not mention null."""
    return {name: without_null(schema) for name, schema in kind.model_json_schema().get("properties", {}).items()}


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an optional parameter without null, because a query can omit a parameter but cannot send null."""
    schema = dict(schema)
    for choice in schema.pop("anyOf", []):
        if choice != {"type": "null"}:
            schema |= choice
    return schema


def expected(schema: dict[str, Any]) -> str:
    """What a value must be, in words that follow "must be"."""
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if "pattern" in schema:
        return f"text that matches {schema['pattern']}"
    kind = {"integer": "a whole number in decimal digits", "number": "a number", "boolean": "true or false"}
    return f"{kind.get(schema['type'], 'text')}{_range(schema)}"


def _range(schema: dict[str, Any]) -> str:
    low, above, high = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    words = [
        f"at least {low:g}" if low is not None else "",
        f"above {above:g}" if above is not None else "",
        f"at most {high}" if high is not None else "",
    ]
    said = " and ".join(filter(None, words))
    return f", {said}" if said else ""


def _decoded(raw: bytes) -> str:
    """The text that `raw` encodes. Raises ValueError whose message completes "the name …" or "the value …"."""
    if b"%" in raw:
        if _BROKEN_ESCAPE.search(raw):
            raise ValueError("has a % without two hexadecimal digits; encode % itself as %25")
    elif raw.isalnum():  # nothing to decode, in most requests
        return raw.decode()
    try:
        text = unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8; encode it as UTF-8, then percent-encode it") from None
    if _CONTROL.search(text):
        raise ValueError("has a control character; leave it out")
    if not text:
        raise ValueError("is empty")
    return text


def _add(values: dict[str, Any], name: str, raw_value: bytes, schemas: dict[str, dict[str, Any]]) -> str | None:
    """Adds one parameter to `values`, or returns what is wrong with it."""
    schema = schemas.get(name)
    if schema is None:
        return "unknown parameter"
    repeatable = schema["type"] == "array"
    if name in values and not repeatable:
        return "is given more than once; give it once"
    if not raw_value:
        return "has no value; give one, or leave the parameter out"
    try:
        text = _decoded(raw_value)
    except ValueError as fault:
        return f"the value {fault}"
    if repeatable:
        values.setdefault(name, []).append(text)
        return None
    try:
        values[name] = _VALUES.get(schema["type"], str)(text)
    except ValueError:
        values[name] = None  # so that a second value is reported too
        return f"must be {expected(schema)}"
    return None


def _whole_number(text: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(text):
        raise ValueError
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return float(text)


def _flag(text: str) -> bool:
    try:
        return _FLAGS[text.lower()]
    except KeyError:
        raise ValueError from None


_VALUES: dict[str, Callable[[str], Any]] = {"integer": _whole_number, "number": _number, "boolean": _flag}


def _problem(faults: dict[str, str]) -> Problem:
    listed = [{"parameter": name[:LONGEST_NAME], "detail": fault} for name, fault in list(faults.items())[:MAX_LISTED]]
    detail = "; ".join(f"{each['parameter']}: {each['detail']}" for each in listed)
    return Problem(422, "parameter", f"{detail}. GET /docs lists the parameters.", more={"errors": listed})
