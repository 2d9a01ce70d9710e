import asyncio
import base64
import contextlib
import tracemalloc

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
        "\\n".join(TEXT[i : i + 76] for i in range(0, 344, 76)),
    ],
)
def test_base64_may_be_plain_or_wrapped_or_a_data_url(text):
    assert from_json(f'{{"image": "{text}"}}'.encode()) == DATA


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "JSON"),
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


# --- any request is read or refused with a problem -------------------------------------------------------------------


def outcome(content_type: str, chunks: list[bytes]) -> bytes | int:
    """The result of `read` for a body that arrives in `chunks`: the bytes, or the problem's status."""
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict:
        return waiting.pop(0)

    headers = [(b"content-type", content_type.encode("latin-1", "replace"))]
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
