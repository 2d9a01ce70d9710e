"""The layer around all routes: request ids, metrics, and an answer when a handler fails."""

import asyncio
import json

import pytest

from service.app import create_app
from service.http import middleware
from service.http.middleware import Edge
from service.settings import Settings


@pytest.fixture
def runtime():
    return create_app(Settings()).state.runtime


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def fail(scope, receive, send):
    raise KeyError("a secret")


def call(runtime, app, method="GET", path="/x", headers=(), on_send=None):
    """The status, the headers and the body of the response."""
    sent = []

    async def send(message):
        sent.append(message)
        if on_send:
            on_send(message)

    async def receive():
        pytest.fail("nothing reads the body")

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(Edge(app, runtime)(scope, receive, send))
    start, *bodies = sent
    return start["status"], dict(start["headers"]), b"".join(each["body"] for each in bodies)


def observed(runtime, of, **labels):
    return runtime.metrics.registry.get_sample_value(f"detector_request_seconds_{of}", labels)


@pytest.mark.parametrize("given", [b"a", b"A-b_c.9", b"x" * 64])
def test_a_valid_request_id_is_kept(runtime, given):
    assert call(runtime, answer, headers=[(b"x-request-id", given)])[1][b"x-request-id"] == given


def test_two_request_ids_are_replaced_by_a_new_one(runtime):
    found = call(runtime, answer, headers=[(b"x-request-id", b"a"), (b"x-request-id", b"b")])[1][b"x-request-id"]
    assert len(found) == 32


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 65, b"\xff", b"a\n"])
def test_any_other_request_id_is_replaced(runtime, given):
    first, second = (call(runtime, answer, headers=[(b"x-request-id", given)])[1][b"x-request-id"] for _ in range(2))
    assert len(first) == 32
    assert len({first, second, given}) == 3


def test_an_exception_becomes_a_problem_that_does_not_quote_it(runtime):
    status, headers, body = call(runtime, fail)
    document = json.loads(body)
    assert (status, document["status"], document["reason"]) == (500, 500, "internal")
    assert document["request_id"].encode() == headers[b"x-request-id"]
    assert b"secret" not in body
    assert runtime.metrics.registry.get_sample_value("detector_failed_total", {"reason": "internal"}) == 1
    assert observed(runtime, "count", method="GET", route="unmatched", status="500") == 1


def test_an_exception_in_the_middle_of_a_response_is_raised(runtime):
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError

    with pytest.raises(KeyError):
        call(runtime, application)


def test_head_is_answered_like_get(runtime):
    methods = []

    async def application(scope, receive, send):
        methods.append(scope["method"])
        await answer(scope, receive, send)

    call(runtime, application, "HEAD")
    assert methods == ["GET"]
    assert observed(runtime, "count", method="HEAD", route="unmatched", status="200") == 1


def test_an_unknown_method_does_not_become_a_label(runtime):
    call(runtime, answer, "BREW")
    assert observed(runtime, "count", method="other", route="unmatched", status="200") == 1


def test_the_time_of_a_request_ends_with_its_last_byte_even_if_sending_returns_later(runtime, monkeypatch):
    now = 100.0

    def on_send(message):
        nonlocal now
        now += 2 if message["type"] == "http.response.start" else 10

    monkeypatch.setattr(middleware.time, "perf_counter", lambda: now)
    call(runtime, answer, on_send=on_send)
    assert observed(runtime, "sum", method="GET", route="unmatched", status="200") == 2


def test_while_draining_every_response_closes_its_connection(runtime):
    assert b"connection" not in call(runtime, answer)[1]
    runtime.readiness.drain()
    assert call(runtime, answer)[1][b"connection"] == b"close"
