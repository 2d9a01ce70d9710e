"""The words for bytes that are not valid HTTP. test_connections.py sends such bytes to a real server."""

import json

import pytest

from service.http import refusals

GOOD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", "tls"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2"),
        (b"POST / HTTP/1.1\r\n\r\n", "bad_host"),
        (GOOD + b"Host: y\r\n\r\n", "bad_host"),
        (GOOD + b"X: a\rb\r\n\r\n", "bad_head"),
        (GOOD + b"X: a\x00b\r\n\r\n", "bad_head"),
        (GOOD + b"Content-Length: -5\r\n\r\n", "bad_length"),
        (GOOD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "bad_length"),
        (GOOD + b"Transfer-Encoding: gzip\r\n\r\n", "bad_transfer_encoding"),
        (GOOD + b"Transfer-Encoding: chunked, identity\r\n\r\n", "bad_transfer_encoding"),
        (GOOD + b"a header without a colon\r\n\r\n", "bad_head"),
        (b"", "bad_chunk"),
    ],
)
def test_a_refusal_names_the_fault(head, reason):
    problem = refusals.malformed(head)
    assert (problem.status, problem.reason) == (400, reason)


def test_the_response_is_a_problem_document_with_a_request_id():
    head, _, body = refusals.response(refusals.head_too_long()).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    document = json.loads(body)
    assert lines[0] == "HTTP/1.1 431 Request Header Fields Too Large"
    assert "content-type: application/problem+json" in lines
    assert f"content-length: {len(body)}" in lines
    assert f"x-request-id: {document['request_id']}" in lines
    assert document["reason"] == "head_too_long"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"", 0),
        (b"Content-Length: 0\r\n", 0),
        (b"content-length:123\r\n", 123),
        (b"X: Content-Length: 5\r\n", 0),
        (b"Content-Length: many\r\n", 0),
    ],
)
def test_the_expected_body_is_the_content_length(headers, expected):
    assert refusals.expected_body(GOOD + headers + b"\r\n") == expected


def test_a_chunked_body_may_have_any_size():
    assert refusals.expected_body(GOOD + b"Transfer-Encoding: chunked\r\n\r\n") > 10**9
