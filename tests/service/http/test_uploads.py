import asyncio
import base64
import contextlib
import tracemalloc
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from service.http.problems import Problem
from service.http.traffic import Limits, Traffic
from service.http.uploads import from_json, read
from service.queue.memory import MemoryBudget
from service.settings import Settings
from service.telemetry.metrics import Metrics

DATA = bytes(range(256))
TEXT = base64.b64encode(DATA).decode()
LIMITS = Settings(max_upload_bytes=10_000)
TRAFFIC = Traffic(Limits(), Metrics(), MemoryBudget())


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:image/jpeg;charset=utf-8;base64,{TEXT}",
        f"DATA:image/jpeg ; BASE64,{TEXT}",
        f"data:image/jpeg;base64,{quote(TEXT, safe='')}",
        TEXT.rstrip("="),
        TEXT.replace("+", "-").replace("/", "_"),
        TEXT.replace("+", "-").replace("/", "_").rstrip("="),
        TEXT.replace("/", "\\/"),  # as PHP writes it
        f" {TEXT[:100]} \\t{TEXT[100:]}\\r\\n",
        "\\n".join(TEXT[i : i + 76] for i in range(0, 344, 76)),
    ],
)
def test_base64_may_be_plain_or_wrapped_or_a_data_url(text):
    assert from_json(f'{{"image": "{text}"}}'.encode()) == DATA


@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b" \r\n\t", b"\xef\xbb\xbf\n"])
def test_json_may_begin_with_a_byte_order_mark_and_white_space(head):
    assert from_json(head + f'{{"im\\u0061ge": "{TEXT}"}} \n'.encode()) == DATA


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "JSON"),
        (b"\xef\xbb\xbf", "JSON"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"image": "aaaa"}', "JSON"),
        ('{"image": "aaaa"}'.encode("utf-16"), "JSON"),
        (b'{"image": "aaaa"}x', "JSON"),
        (b'{"image": "aaaa"}{"image": "aaaa"}', "JSON"),
        (b'{"image": "aaaa",}', "JSON"),
        (b"{'image': 'aaaa'}", "JSON"),
        (b'{"image": "aaaa"}\x00', "JSON"),
        (b'{"image": "aaaa", "image": "aaaa"}', "only member"),
        (b'{"image": "aaaa", "im\\u0061ge": "bbbb"}', "only member"),
        (b'{"image": 5, "image": "aaaa"}', "only member"),
        (b'{"image": "aa\\"aa"}', "only member"),
        (b'{"Image": "aaaa"}', "only member"),
        (b'{"image ": "aaaa"}', "only member"),
        (b'{"image": ["aaaa"]}', "only member"),
        (b'{"image": {"image": "aaaa"}}', "only member"),
        (b'{"image": true}', "only member"),
        (b'{"image": "aa==aaaa"}', "base64"),
        (b'{"image": "aaa=="}', "base64"),
        (b'{"image": "_-a+"}', "mixes two alphabets, + and / with - and _: the second one begins at position 4"),
        (b'{"image": "/\\naaa_aa"}', "the second one begins at position 6"),
        (b'{"image": "aaaaa"}', "cut short"),
        (b'{"image": "aaaaaa==="}', "it needs 2 or none"),
        (b'{"image": "aaaa="}', "it needs 0 or none"),
        (b'{"image": "aa aa\\naa*aa"}', "a wrong character at position 9"),
        ('{"image": "aaaaä"}'.encode(), "a wrong character at position 5"),
        (b'{"image": "aa==aa"}', "a wrong character at position 3"),
        (b'{"image_base64": "aaaa"}', 'but it has "image_base64"'),
        (b'{"b64": "aaaa", "name": "x"}', 'but it has "b64", "name"'),
        (b'{"image": "aaaa", "score_threshold": 0.5}', 'it also has "score_threshold". Parameters belong in the query'),
        (b"{}", "but it has none"),
        (b'{"<script>\\u0007": 1}', 'it has "?script??"'),
        ('{"image": "aaaa"}'.encode("utf-16-le"), "UTF-8"),
        ('{"image": "aaaa"}'.encode("utf-16-be"), "UTF-8"),
        ('{"image": "aaaa"}'.encode("utf-32"), "UTF-8"),
        (b"{", "JSON"),
        (b"nan", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"image": "\xff"}', "JSON"),
        (b'{"image": "\\ud800"}', "JSON"),
        (b"[]", "object"),
        (b'"image"', "object"),
        (b'{"photo": "aaaa"}', "object"),
        (b'{"image": 5}', "object"),
        (b'{"image": null}', "object"),
        (b'{"image": "aaaa", "threshold": 1}', "object"),
        (b'{"image": "a"}', "base64"),
        (b'{"image": "a*aa"}', "base64"),
        ('{"image": "äöü="}'.encode(), "base64"),
        (b'{"image": "data:image/png,aaaa"}', "base64"),
        (b'{"image": "https://example.org/image.jpg"}', "base64"),
    ],
)
def test_json_of_the_wrong_shape_gets_a_400_that_describes_the_right_one(body, word):
    with pytest.raises(Problem) as caught:
        from_json(body)
    assert caught.value.status == 400
    assert word in caught.value.detail
    assert '{"image": "<base64' in caught.value.detail


@contextlib.contextmanager
def peak():
    """A list to which the peak of allocated bytes is added when the context ends."""
    memory = []
    tracemalloc.start()
    try:
        yield memory
        memory.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("body", [b'{"image": [' + b"[]," * 700_000 + b"[]]}", b"[" + b"1," * 1_000_000 + b"1]"])
def test_json_with_many_values_is_refused_before_it_is_parsed(body):
    with peak() as memory, pytest.raises(Problem) as caught:
        from_json(body)
    assert caught.value.reason == "bad_json"
    assert max(memory) < 5 * len(body)


def test_base64_with_a_lot_of_white_space_needs_little_memory():
    body = b'{"image": "' + b"AA " * 1_000_000 + b'"}'
    with peak() as memory:
        assert from_json(body) == bytes(1_500_000)
    assert max(memory) < 16 * len(body)  # orjson allocates 13 times the body's size but uses little of it


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A" + "=" * 5_000_000, "cut short"),
        ("A=" + " " * 5_000_000, "cut short"),
        ("A" + "= " * 2_500_000, "cut short"),
        ("A" + "=" * 5_000_000 + "A", "position 2."),
        ("A" + "=" * 5_000_000 + "*", "position 2."),
        ("A" * 5_000_001 + "*=", "position 5,000,002."),
    ],
)
def test_the_fault_of_a_long_base64_text_is_found_in_one_pass(text, word):
    """A search that begins again at each = would take hours, during which the service could do nothing else."""
    with pytest.raises(Problem) as caught:
        from_json(f'{{"image": "{text}"}}'.encode())
    assert word in caught.value.detail


# --- any request is read or refused with a problem -------------------------------------------------------------------


def outcome(content_type: str, chunks: list[bytes], headers: list[tuple[bytes, bytes]] | None = None) -> bytes | int:
    """The result of `read` for a body that arrives in `chunks`: the bytes, or the problem's status."""
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict:
        return waiting.pop(0)

    headers = headers or [(b"content-type", content_type.encode("latin-1", "replace"))]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers, "state": {}}
    try:
        return asyncio.run(read(Request(scope, receive), LIMITS, TRAFFIC))
    except Problem as problem:
        return problem.status


PIECES = st.sampled_from(
    [
        b"--x\r\n",
        b"--x--\r\n",
        b"\r\n",
        b"Content-Disposition: form-data; ",
        b'name="image"',
        b'; filename="a.png"\r\n',
        b"filename*=utf-8''%ff",
        b"Content-Type: image/png\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
        b"\0",
        b"\xff\xfe",
        b"=?utf-8?q?=ff?=",
        b'"' * 50,
        b":",
    ]
)
TYPES = st.sampled_from(
    [
        "multipart/form-data; boundary=x",
        'multipart/form-data; boundary="x"; charset=utf-16',
        "multipart/form-data; boundary=x; charset=nonsense",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 5000,
        "multipart/form-data; boundary*=utf-8''x",
        "multipart/form-data",
        "multipart/mixed; boundary=x",
        "application/json",
        "image/png",
        "",
    ]
)


@settings(deadline=None)  # an example's wall time depends on the machine's load
@given(TYPES, st.lists(PIECES | st.binary(max_size=20), max_size=12))
def test_any_body_is_read_or_refused_with_a_problem(content_type, pieces):
    for chunks in (pieces, [b"".join(pieces)]):
        found = outcome(content_type, chunks)
        assert isinstance(found, bytes) or found in (400, 413, 415)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_content_type_is_accepted_or_refused_with_a_problem(content_type):
    found = outcome(content_type, [b"abc"])
    assert found == b"abc" or found in (400, 415)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 50))
def test_a_form_is_read_the_same_however_it_is_divided_into_chunks(data, step):
    body = b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data + b"\r\n--xyz--\r\n"
    if b"--xyz" in data:
        return
    assert outcome("multipart/form-data; boundary=xyz", [body[i : i + step] for i in range(0, len(body), step)]) == data


def test_the_limit_applies_to_the_received_bytes():
    assert outcome("image/png", [b"a" * 5000] * 2) == b"a" * 10_000
    assert outcome("image/png", [b"a" * 5000] * 3) == 413


def test_a_client_that_disconnects_during_its_upload_is_counted():
    metrics = Metrics()

    async def receive() -> dict:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [], "state": {}}
    with pytest.raises(ClientDisconnect):
        asyncio.run(read(Request(scope, receive), Settings(), Traffic(Limits(), metrics, MemoryBudget())))
    labels = {"reason": "disconnected", "stage": "read"}
    assert metrics.registry.get_sample_value("detector_cancelled_total", labels) == 1


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("x", "y")], b"abc"),
        ([("content-type", "image/png; charset=binary; q=1")], b"abc"),
        ([("content-type", "IMAGE/SVG+XML")], b"abc"),
        ([("content-type", "application/octet-stream;")], b"abc"),
        ([("content-type", "image/png"), ("content-encoding", "identity, Identity")], 415),
        ([("content-type", "image/png"), ("content-encoding", "IDENTITY")], b"abc"),
        ([("content-type", "image/png"), ("content-encoding", "identity"), ("content-encoding", "gzip")], 415),
        ([("content-type", "image/png"), ("content-encoding", "gzip, identity")], 415),
        ([("content-type", "image/png"), ("content-encoding", "")], 415),
        ([("content-type", "image/png"), ("content-type", "image/png")], 415),
        ([("content-type", "image/png"), ("content-type", "text/html")], 415),
        ([("content-type", "image/png, text/html")], 415),
        ([("content-type", "image/")], 415),
        ([("content-type", "image/*")], b"abc"),
        ([("content-type", "image")], 415),
        ([("content-type", "xapplication/json")], 415),
        ([("content-type", "")], 415),
        ([("content-type", "image/png; a=" + "b" * 980)], b"abc"),
        ([("content-type", "image/png; a=" + "b" * 990)], 415),
    ],
)
def test_the_headers_of_an_upload_have_one_meaning(headers, expected):
    assert outcome("", [b"abc"], [(name.encode(), value.encode()) for name, value in headers]) == expected
