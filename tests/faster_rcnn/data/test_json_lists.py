"""JSON documents that record the position of each list element."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faster_rcnn.data.json_lists import JSONList, decode_members


def plain(document: dict[str, Any]) -> dict[str, Any]:
    """The members, with each `JSONList` turned into a Python list."""
    return {
        name: [element for element, _ in value] if isinstance(value, JSONList) else value
        for name, value in document.items()
    }


def test_each_element_has_its_line_and_column() -> None:
    text = '{"a": [\n  1, {"b": [2]},\n "x"\n], "c": 3}'
    #        line 1    line 2, columns 3 and 6   line 3, column 2
    members = decode_members(text)
    assert list(members["a"]) == [(1, "2:3"), ({"b": [2]}, "2:6"), ("x", "3:2")]
    assert len(members["a"]) == 3
    assert members["c"] == 3


@pytest.mark.parametrize("text", ["[1]", "null", " 3 ", '"x"'])
def test_a_document_that_is_not_an_object_has_no_members(text: str) -> None:
    assert decode_members(text) == {}


def test_the_last_of_several_members_with_the_same_name_is_used() -> None:
    assert plain(decode_members('{"a": [1], "a": [2]}')) == {"a": [2]}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
documents = st.dictionaries(st.text(), values, max_size=4)


@given(documents, st.sampled_from([None, 0, 1]))
def test_members_equal_those_of_pythons_own_parser(document: dict[str, Any], indent: int | None) -> None:
    assert plain(decode_members(f" {json.dumps(document, indent=indent)}\n")) == document


def outcome(read: Callable[[str], Any], text: str) -> Any:
    """What `read` returns, or the message of its error, with line and column."""
    try:
        return read(text)
    except json.JSONDecodeError as error:
        return str(error)


@given(documents, st.data())
def test_broken_documents_raise_the_error_of_pythons_own_parser(document: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(document)
    cut = data.draw(st.integers(0, len(text) - 1))
    broken = text[:cut] + data.draw(st.sampled_from(["", "]", "}", ",", ":", "x"])) + text[cut + 1 :]
    expected, found = outcome(json.loads, broken), outcome(lambda text: plain(decode_members(text)), broken)
    assert found == (expected if isinstance(expected, dict | str) else {})
