"""Which requests the quick parser may have: those that every parser reads alike."""

import h11
import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.connections import plain_length

HEAD = b"POST /detect?label=a%20b HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (HEAD + b"\r\n", 0),
        (HEAD + b"Content-Length: 80123\r\n\r\n", 80123),
        (HEAD + b"content-length:7\r\nX-Request-ID: a\r\n\r\n", 7),
        (b"GET / HTTP/1.1\r\nhost: x\r\nConnection: close\r\n\r\n", 0),
    ],
)
def test_what_ordinary_clients_send_is_plain(head, length):
    assert plain_length(head) == length


@pytest.mark.parametrize(
    "head",
    [
        b"",
        HEAD,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"transfer-encoding:\tchunked\r\nContent-Length: 5\r\n\r\n",
        HEAD + b"Upgrade: h2c\r\n\r\n",
        HEAD + b"Expect: 100-continue\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        HEAD + b"Content-Length: 5, 5\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\n",
        HEAD + b"Content-Length:\r\n\r\n",
        HEAD + b"Content-Length: 9999999999999999\r\n\r\n",
        HEAD + b"Content-Length : 5\r\n\r\n",
        HEAD + b"X: a\r\n folded\r\n\r\n",
        HEAD + b"X: a\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"X: \x00\r\n\r\n",
        HEAD + b"X: \xe4\r\n\r\n",
        HEAD + b"Host: y\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nX: y\r\n\r\n",
        b"POST /detect HTTP/1.0\r\nHost: x\r\n\r\n",
        b"POST http://x/detect HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /detect#a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST  /detect HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PUT /detect HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\nPOST /detect HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_odd_is_not_plain(head):
    assert plain_length(head) is None


class Heard:
    """What httptools makes of a head."""

    def __init__(self, head: bytes) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(head)
        self.method = parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


NAMES = st.sampled_from([b"Host", b"Content-Length", b"Connection", b"Accept", b"Transfer-Encoding", b"X|y", b"Via "])
VALUES = st.sampled_from([b"x", b"12", b"close", b"keep-alive", b" a:b ", b'"', b"\t1\t", b"", b"upgrade", b"\x7f"])
LINES = st.lists(st.tuples(NAMES, VALUES) | st.tuples(st.binary(max_size=3), st.binary(max_size=3)), max_size=4)
TARGETS = st.sampled_from([b"/", b"/detect?a=b", b"//x", b"/%zz", b"/a b", b"/\x80", b"*", b'/"<>^`{|}\\', b"/a?b?c=/"])


@given(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS"]), TARGETS, LINES)
@example(b"GET", b"/", [(b"", b"a")])
@example(b"POST", b'/"<>^`{|}\\', [(b"Content-Length", b"\t1\t"), (b"Connection", b"upgrade")])
def test_a_plain_head_is_read_alike_by_both_parsers(method, target, lines):
    head = (
        method + b" " + target + b" HTTP/1.1\r\nhost: x\r\n" + b"".join(b"%b:%b\r\n" % line for line in lines) + b"\r\n"
    )
    length = plain_length(head)
    if length is None:
        return
    strict = h11.Connection(h11.SERVER)
    strict.receive_data(head)
    request = strict.next_event()
    quick = Heard(head)
    assert quick.complete
    assert isinstance(request, h11.Request)
    assert (quick.method, quick.target) == (request.method, request.target)
    assert [(name, value.strip(b" \t")) for name, value in quick.headers] == list(request.headers)
    assert length == int(dict(quick.headers).get(b"content-length", b"0"))
