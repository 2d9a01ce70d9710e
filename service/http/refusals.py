"""Answers to bytes that the HTTP parser refuses, which never reach the application."""

from __future__ import annotations

import re

import orjson

from service.http.problems import Problem
from service.http.request_ids import new_id

UNKNOWN = 2**62  # the expected size of a chunked body
MAX_HEAD = 2**15  # bytes of a request's head, however it arrives

_HOST = re.compile(rb"(?im)^host[ \t]*:")
_LENGTH = re.compile(rb"(?im)^content-length[ \t]*:[ \t]*(.*?)[ \t]*\r?$")
_LENGTHS = re.compile(rb"\d{1,20}([ \t]*,[ \t]*\d{1,20})*")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding[ \t]*:")
_FORBIDDEN = re.compile(rb"\x00|\r(?!\n)")


def expected_body(head: bytes) -> int:
    """The size of the body that a head announces, UNKNOWN if it is chunked. Only an estimate: h11 decides."""
    if _CHUNKED.search(head):
        return UNKNOWN
    length = _LENGTH.search(head)
    return int(length[1]) if length and _LENGTHS.fullmatch(length[1]) and b"," not in length[1] else 0


def slow_upload(seconds: float) -> Problem:
    detail = f"The body did not arrive within {seconds:g} s, and too many uploads are in progress. Try again later."
    return Problem(408, "slow_upload", detail)


def head_too_long() -> Problem:
    detail = f"The head of the request is longer than {MAX_HEAD:,} bytes. Send fewer or shorter headers."
    return Problem(431, "head_too_long", detail)


def malformed(head: bytes) -> Problem:
    """The problem with a request whose `head` the parser refuses. `head` is empty for a chunk of a body."""
    if not head:
        detail = "A chunk of the body is malformed. Send the size of each chunk in hexadecimal."
        return Problem(400, "bad_chunk", detail)
    for found, reason, detail in _faults(head):
        if found:
            return Problem(400, reason, detail)
    return Problem(
        400, "bad_head", "The head of the request is not valid HTTP/1.1. Send a request line, Host, and valid headers."
    )


def _faults(head: bytes) -> tuple[tuple[bool, str, str], ...]:
    lengths = _LENGTH.findall(head)
    return (
        (
            head.startswith(b"\x16\x03"),
            "tls",
            "These bytes are a TLS handshake, but this port expects plain HTTP. Use http://, or a proxy for TLS.",
        ),
        (
            head.startswith(b"PRI * HTTP/2"),
            "http2",
            "This service speaks HTTP/1.1. Send no HTTP/2 preface without an agreement.",
        ),
        (
            _FORBIDDEN.search(head) is not None,
            "bad_head",
            "The head contains a NUL byte, or a carriage return without a line feed. Remove it.",
        ),
        (len(_HOST.findall(head)) != 1, "bad_host", "The head must have exactly one Host header."),
        (
            any(not _LENGTHS.fullmatch(value) for value in lengths) or len({*lengths}) > 1,
            "bad_length",
            "Content-Length must be one whole number of bytes, of at most 20 digits. Send it once.",
        ),
        (
            re.search(rb"(?im)^transfer-encoding[ \t]*:(?![ \t]*chunked[ \t]*\r?$)", head) is not None,
            "bad_transfer_encoding",
            "The only Transfer-Encoding that is supported is chunked.",
        ),
    )


def response(problem: Problem) -> bytes:
    """The whole response with a problem document, after which the connection closes."""
    request_id = new_id()
    document = problem.document(request_id)
    body = orjson.dumps(document)
    head = (
        f"HTTP/1.1 {problem.status} {document['title']}\r\n"
        "content-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
