"""Files that are not JSON or XML are explained in plain words with the position, not in the words of a library."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from faster_rcnn.data.json_lists import decode_document
from faster_rcnn.data.syntax_errors import json_fault, xml_fault, xml_line


def why_not_json(text: str) -> str:
    with pytest.raises((ValueError, RecursionError)) as caught:
        decode_document(text)
    return json_fault(caught.value)


@pytest.mark.contract("6.2")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" \n", "it is empty"),
        ('{"a": 1\n', "it ends in line 1, before it is complete"),
        ('["abc', "it ends in line 1"),
        ("<!DOCTYPE html>", "HTML or XML, perhaps an error page"),
        ("version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
        ('{"a": 1,\n}', "line 2, column 1: a key in double quotes is missing"),
        ('{"a" 1}', "line 1, column 6: the colon after a key is missing"),
        ('{"a": [1\n2]}', "line 2, column 1: a comma or a closing bracket is missing"),
        ('{"a": Nope}', "line 1, column 7: a value is missing"),
        ('{"path": "C:\\images"}', "line 1, column 13: a backslash in a text is not doubled"),  # JSON: C:\images
        ('{"a": "x\ny"}', "line 1, column 9: a text holds a line break"),
        ('{"a": 1, "a": 2}', "line 1 repeats the key 'a'"),
    ],
)
def test_why_a_document_is_not_json(text: str, words: str) -> None:
    assert words in why_not_json(text)


@given(st.text(alphabet='{}[]",:\\ \n0e-tN', max_size=12))
def test_no_message_of_the_json_library_is_shown(text: str) -> None:
    error: Exception | None = None
    try:
        decode_document(text)
    except ValueError as raised:
        error = raised
    if error is not None:
        words = json_fault(error)
        assert "this is not JSON" not in words  # every message of the library has words of its own
        assert not isinstance(error, json.JSONDecodeError) or error.msg not in words


@pytest.mark.contract("6.2")
@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "it is empty"),
        ("<a>\n<b>Tom & Jerry</b></a>", 2, "write &amp; or &lt;"),
        ("<a>\n<b>x < y</b></a>", 2, "write &amp; or &lt;"),
        ("<a>\n<b>", 2, "cut short"),
        ("<a>\n<b", 2, "cut short"),
        ("<a></a>\n<b/>", 2, "something follows the outermost element"),
        ("<a b=1/>", 1, "the value of an attribute has no quotes"),
        ("version https://git-lfs.github.com/spec/v1", 1, "`git lfs pull`"),
    ],
)
def test_why_a_document_is_not_xml(text: str, line: int, words: str) -> None:
    with pytest.raises((etree.XMLSyntaxError, ValueError)) as caught:
        etree.fromstring(text.encode())
    assert xml_line(caught.value) == line
    assert words in xml_fault(caught.value, text.encode())
