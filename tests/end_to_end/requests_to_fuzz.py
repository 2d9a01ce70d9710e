"""Hypothesis strategies for what a client may send: HTTP requests that are right, nearly right, and not at all.

A conversation is a list of pieces of bytes, which a client sends one after the other on one connection.
"""

from __future__ import annotations

import base64
import json

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.end_to_end import hostile_files

VALID = list(hostile_files.valid().values())
HOSTILE = [data for data in hostile_files.hostile().values() if len(data) < 10_000]

METHODS = [b"POST"] * 6 + [b"GET", b"HEAD", b"PUT", b"OPTIONS", b"TRACE", b"CONNECT", b"post", b"", b"PRI", b"A" * 300]
PATHS = [b"/detect"] * 6 + [
    b"/proposals", b"/models", b"/models/plain", b"/healthz", b"/readyz", b"/metrics", b"/", b"/docs",
    b"/openapi.json",
    b"/metrics%0a", b"//detect", b"/models/%ff", b"*", b"http://x/detect", b"http://x", b"", b"/" + b"a" * 5000,
    b"/\xff",
]  # fmt: skip
QUERIES = [b""] * 4 + [
    b"?score_threshold=0.5", b"?model=plain&version=1", b"?proposals=true&max_proposals=2", b"?timeout=0.001",
    b"?label=first",
    b"?priority=bulk", b"?model=", b"?a=b", b"?score_threshold=nan", b"?timeout=1e999", b"?%ff=%00", b"?&&=&;",
    b"?timeout=5&timeout=6",
    b"?image_id=" + b"0" * 64, b"?max_detections=" + b"9" * 400, b"?" + b"label=a&" * 500,
]  # fmt: skip
VERSIONS = [b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/9.9", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1", b""]
HEADERS = [
    b"Host: x", b"Host: x", b"Host: y", b"Connection: close", b"Connection: keep-alive, close",
    b"Connection: Upgrade, HTTP2-Settings",
    b"Upgrade: h2c", b"Upgrade: websocket", b"Expect: 100-continue", b"Expect: x", b"Accept: image/png",
    b"Accept: application/x-npz",
    b"Accept: image/jpeg;q=0.5, */*;q=nan", b"Accept: ,;,=", b"X-Request-ID: a", b"X-Request-ID: \xff",
    b"Content-Encoding: gzip",
    b"Content-Type: application/json", b"Content-Type: image/png", b"Content-Type: ",
    b"Content-Type: multipart/form-data",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: Chunked ",
    b"Transfer-Encoding: x",
    b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: +5", b"Content-Length: 5, 5", b"Content-Length: -1",
    b"Content-Length: 99999999999999999999", b"Content-Length : 5", b"X: " + b"a" * 20_000, b" folded",
    b"Range: bytes=0-5",
    b"Cookie: a=b", b"Trailer: x", b"TE: trailers", b"Max-Forwards: 0", b"X\0Y: z", b": a", b"no colon",
    b"Authorization: Bearer x",
]  # fmt: skip


@st.composite
def files(draw: DrawFn) -> bytes:
    """The bytes of a file, often those of a valid one that has been damaged."""
    data = draw(st.binary(max_size=200) | st.sampled_from(VALID) | st.sampled_from(HOSTILE))
    return draw(damaged(data))


@st.composite
def damaged(draw: DrawFn, data: bytes) -> bytes:
    """`data` with up to four places changed: bytes replaced, removed, inserted or repeated, or the end cut off."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 4]))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 2, 4, 16, 300]))
        replacement = draw(
            st.sampled_from([b"", b"\0", b"\xff\xff\xff\xff", b"\r\n", b"\n", b"\x7f"]) | st.binary(max_size=8)
        )
        change = draw(st.sampled_from(["replace", "insert", "repeat", "cut"]))
        if change == "replace":
            data = data[:place] + replacement + data[place + length :]
        elif change == "insert":
            data = data[:place] + replacement + data[place:]
        elif change == "repeat":
            data = (
                data[:place] + data[place : place + length] * draw(st.sampled_from([2, 3, 50])) + data[place + length :]
            )
        else:
            data = data[:place]
    return data


@st.composite
def bodies(draw: DrawFn) -> tuple[bytes, bytes]:
    """A Content-Type and a body in one of the ways in which an image is sent."""
    data = draw(files())
    way = draw(st.sampled_from(["raw", "form", "json"]))
    if way == "raw":
        return draw(st.sampled_from([b"image/png", b"application/octet-stream", b"image/*"])), data
    if way == "json":
        text = draw(damaged(base64.b64encode(data)))
        document = draw(damaged(json.dumps({"image": text.decode("latin-1")}).encode()))
        return b"application/json", document
    head = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    form = (
        b"--x\r\n" + draw(damaged(head)) + data + b"\r\n--x" + draw(st.sampled_from([b"--\r\n", b"--", b"\r\n", b""]))
    )
    return b"multipart/form-data; boundary=x", draw(damaged(form))


@st.composite
def framed(draw: DrawFn, body: bytes) -> tuple[list[bytes], bytes]:
    """The headers that tell where `body` ends, usually right, and the bytes that follow the head."""
    if draw(st.booleans()):
        length = len(body) + draw(st.sampled_from([0] * 12 + [1, -1, 1000]))
        return [b"Content-Length: %d" % max(0, length)], body
    step = draw(st.sampled_from([1, 7, 100, 5000]))
    if step == 1:
        body = body[:5000]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part := body[at : at + step]), part) for at in range(0, len(body), step))
    end = draw(
        st.sampled_from(
            [b"0\r\n\r\n"] * 6 + [b"0\r\nX: y\r\n\r\n", b"", b"-1\r\n", b"0", b"ffffffffffffffffff\r\n", b"0\n\n"]
        )
    )
    return [b"Transfer-Encoding: chunked"], draw(damaged(chunks)) + end


@st.composite
def requests(draw: DrawFn) -> bytes:
    """One request. In half of them only the body may be wrong; the others differ from a right one in any place."""
    kind, body = draw(bodies())
    if draw(st.booleans()):
        path = draw(st.sampled_from([b"/detect", b"/detect?proposals=true", b"/proposals"]))
        accept = draw(st.sampled_from([b"*/*", b"image/png", b"application/x-npz"]))
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: %b\r\n" % (path, accept)
        return head + b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)) + body
    framing, payload = draw(framed(body))
    line = b" ".join(draw(st.sampled_from(each)) for each in (METHODS, PATHS))
    line += draw(st.sampled_from(QUERIES)) + b" " + draw(st.sampled_from(VERSIONS))
    extra = draw(st.lists(st.sampled_from(HEADERS), max_size=3))
    headers = [b"Host: x", b"Content-Type: " + kind, *framing, *extra]
    end = draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r"]))
    head = end.join([line, *headers, b"", b""])
    return draw(damaged(head)) + payload


@st.composite
def conversations(draw: DrawFn) -> list[bytes]:
    """Up to two requests, or anything else, in up to four pieces."""
    data = b"".join(
        draw(st.lists(requests(), min_size=1, max_size=2)) if draw(st.integers(0, 9)) else [draw(st.binary())]
    )
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [piece for piece in pieces if piece]
