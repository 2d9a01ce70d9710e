"""JSON documents that record the position of each list element."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faster_rcnn.data.json_lists import JSONList, decode_document, read_text


def plain(document: Any) -> Any:
    """The document, with each `JSONList` turned into a Python list."""
    if isinstance(document, JSONList):
        return [element for element, _ in document]
    return {name: plain(value) for name, value in document.items()} if isinstance(document, dict) else document


def test_each_element_has_its_line_and_column() -> None:
    text = '{"a": [\n  1, {"b": [2]},\n "x"\n], "c": 3}'
    #        line 1    line 2, columns 3 and 6   line 3, column 2
    members = decode_document(text)
    assert list(members["a"]) == [(1, "2:3"), ({"b": [2]}, "2:6"), ("x", "3:2")]
    assert len(members["a"]) == 3
    assert members["c"] == 3


@pytest.mark.parametrize("text", ["[1, [2]]", "null", " 3 ", '"x"', "[]"])
def test_a_document_may_be_any_value(text: str) -> None:
    assert plain(decode_document(text)) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": [1],\n"a": [2]}', "line 2 repeats the key 'a'"),
        ('{"a": [1,\n\n{"b": {"c": 1, "c": 1}}]}', "the value at line 3 has the key 'c' twice"),
        ('[{"b": 1, "b": 2}]', "the value at line 1 has the key 'b' twice"),
        ('{"a": 1}\n{"a": 2}', "line 2 begins another value, so it is JSON lines"),
        ("[1]\r\n[2]", "line 2 begins another value"),
        ('{"a": 1}}', "Extra data: line 1 column 9"),
    ],
)
def test_a_document_with_two_answers_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decode_document(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_understood(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text('{"a": "\u00e9"}', encoding=encoding)
    assert decode_document(read_text(tmp_path / "a.json")) == {"a": "\u00e9"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
documents = st.dictionaries(st.text(), values, max_size=4)


@given(documents, st.sampled_from([None, 0, 1]))
def test_members_equal_those_of_pythons_own_parser(document: dict[str, Any], indent: int | None) -> None:
    assert plain(decode_document(f" {json.dumps(document, indent=indent)}\n")) == document


def outcome(read: Callable[[str], Any], text: str) -> Any:
    """What `read` returns, or the message of its error."""
    try:
        return read(text)
    except ValueError as error:
        return str(error)


@given(documents, st.data())
def test_broken_documents_raise_the_error_of_pythons_own_parser(document: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(document)
    cut = data.draw(st.integers(0, len(text) - 1))
    broken = text[:cut] + data.draw(st.sampled_from(["", "]", "}", ",", ":", "x"])) + text[cut + 1 :]
    expected, found = outcome(json.loads, broken), outcome(lambda text: plain(decode_document(text)), broken)
    stricter = isinstance(found, str) and ("repeats the key" in found or "twice" in found or "begins another" in found)
    assert stricter or found == expected
