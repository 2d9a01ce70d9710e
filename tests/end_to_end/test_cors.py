"""CORS_ORIGINS: what a browser is told about pages of other origins."""

import httpx
import pytest

from tests.end_to_end.conftest import problem

PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key, content-type"}
PAGE = "https://app.example.org"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A service with one origin and a file of keys that lets nobody in."""
    from tests.end_to_end.conftest import Server

    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("# none\n")
    running = Server(CORS_ORIGINS=f"http://localhost:3000, {PAGE}", API_KEYS_FILE=keys).ready()
    yield running
    assert running.stop() == 0


@pytest.mark.contract("7.8")
def test_a_preflight_needs_no_key(guarded):
    answer = guarded.http.options("/detect", headers={"Origin": PAGE} | PREFLIGHT)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert {"authorization", "x-api-key"} <= set(answer.headers["access-control-allow-headers"].lower().split(", "))
    assert "Origin" in answer.headers["vary"]
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"} | PREFLIGHT,
        {"Origin": f"{PAGE}.evil.example"} | PREFLIGHT,
        {"Origin": "null"} | PREFLIGHT,
        {"Origin": PAGE} | PREFLIGHT | {"Access-Control-Request-Method": "DELETE"},
        {"Origin": PAGE} | PREFLIGHT | {"Access-Control-Request-Headers": "x-other"},
    ],
)
def test_another_origin_method_or_header_is_refused(guarded, headers):
    answer = guarded.http.options("/detect", headers=headers)
    assert problem(answer, 400)["reason"] == "cors"
    assert "CORS_ORIGINS" in answer.json()["detail"]


def test_a_page_may_read_errors_and_the_headers_of_an_answer(guarded):
    answer = guarded.http.post("/detect", content=b"x", headers={"Origin": PAGE})
    assert answer.status_code == 401  # the key is missing
    assert answer.headers["access-control-allow-origin"] == PAGE
    exposed = answer.headers["access-control-expose-headers"]
    assert exposed == "X-Request-ID, Image-Id, Image-Warnings, Answer-Truncated, Server-Timing, Retry-After"
    other = guarded.http.get("/healthz", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_any_origin_may_be_allowed(start):
    running = start(CORS_ORIGINS="*").ready()
    answer = running.http.get("/healthz", headers={"Origin": "null"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert running.http.options("/detect", headers={"Origin": "null"} | PREFLIGHT).status_code == 204


def test_without_the_setting_nothing_is_allowed(server):
    answer: httpx.Response = server.http.options("/detect", headers={"Origin": PAGE} | PREFLIGHT)
    assert problem(answer, 405)["reason"] == "method"
    assert not [name for name in answer.headers if name.startswith("access-control")]
