"""A service that asks for keys, and uploads that belong to the client that sent them."""

import hashlib
import re
import socket

import httpx
import pytest
from PIL import Image

from service import keys
from tests.end_to_end.conftest import Server, encoded, eventually, problem
from tests.service import graphs

SOON = 30  # seconds; limits how long a test waits
GREY = encoded(Image.new("RGB", (96, 32), (102, 102, 102)))
WHITE = encoded(Image.new("RGB", (96, 32), (255, 255, 255)))
ALICE, BOB, CAROL = (keys.new() for _ in range(3))


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def write(file, **named):
    file.write_text("".join(f"{name} {keys.digest_of(key)}\n" for name, key in named.items()))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    write(file, alice=ALICE, bob=BOB)
    return file


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    graphs.publish(store)
    return store


@pytest.fixture(scope="module")
def locked(file, store):
    """A service that asks for keys; its client presents that of alice."""
    server = Server(MODEL_STORE=store, API_KEYS_FILE=file, ACCESS_LOG=1, LOG_LEVEL="debug").ready()
    server.http.headers.update(bearer(ALICE))
    yield server
    assert server.stop() == 0
    log = "".join(server.lines)
    for key in (ALICE, BOB, CAROL):
        assert key not in log


@pytest.fixture
def anyone(locked):
    with httpx.Client(base_url=locked.url, timeout=SOON) as client:
        yield client


def exchange(server, request):
    """The whole response to the bytes of a request, after which the connection is closed."""
    with socket.create_connection(server.address) as connection:
        connection.settimeout(SOON)
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.contract("7.2")
@pytest.mark.parametrize(
    "line",
    [
        "GET / ", "GET /docs", "GET /openapi.json", "GET /metrics", "GET /models", "POST /detect", "HEAD /models",
        "OPTIONS *", "OPTIONS /detect", "BREW /coffee", "GET /unknown", "POST //detect", "GET /healthz/",
        "GET //healthz",
        "GET /healthz%0a", "GET /healthz%00", "GET /healthz%2f", "GET /healthz/../models", "GET /%2e/models",
        "GET http://x/models", "GET http://healthz/models", "GET http://x/healthz/", "GET ftp://x/healthz",
        "GET /healthz;x",
    ],
)  # fmt: skip
def test_without_a_key_every_spelling_of_every_path_gets_401(locked, line):
    request = f"{line.strip()} HTTP/1.1\r\nHost: healthz\r\nConnection: close\r\n\r\n".encode()
    head, _, _ = exchange(locked, request).lower().partition(b"\r\n\r\n")
    assert head.startswith(b"http/1.1 401 ")
    assert b"\r\nwww-authenticate: bearer" in head
    assert b"\r\ncontent-type: application/problem+json" in head
    assert b"\r\nx-request-id: " in head


@pytest.mark.contract("7.2")
def test_the_probes_answer_without_a_key(anyone):
    for path in ("/healthz", "/readyz"):
        assert anyone.get(path).status_code == anyone.head(path).status_code == 200


@pytest.mark.contract("7.2")
def test_a_request_without_a_key_is_refused_before_its_body_and_is_counted(locked, anyone):
    before = locked.metric("detector_rejected_total", reason="unauthorised")
    document = problem(anyone.get("/models", headers=bearer("wrong")), 401)
    assert document["reason"] == "unauthorised"
    assert "wrong" not in document["detail"]
    with socket.create_connection(locked.address) as connection:  # the body never comes
        connection.settimeout(SOON)
        head = b"POST /detect HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
    assert locked.metric("detector_rejected_total", reason="unauthorised") == before + 2
    assert locked.metric("detector_upload_bytes_total") == 0


def test_a_key_opens_the_service_and_its_name_is_in_metrics_and_log(locked, anyone):
    assert locked.http.post("/detect", content=WHITE).status_code == 200
    assert anyone.post("/detect", content=WHITE, headers={"X-API-Key": BOB}).status_code == 200
    assert locked.metric("detector_key_requests_total", key="bob", status="200") == 1
    assert locked.metric("detector_key_requests_total", key="alice") >= 1
    pattern = r'\S+Z INFO service.access: 127.0.0.1 bob "POST /detect HTTP/1.1" 200 \d+\.\d ms [0-9a-f]{32}\n'
    eventually(lambda: any(re.fullmatch(pattern, line) for line in locked.lines))
    for key in (ALICE, BOB):
        assert key not in locked.http.get("/metrics").text


def test_the_access_log_shows_no_query_and_no_control_characters(locked):
    exchange(locked, f"GET /x%1b%0a%22INFO?key={ALICE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    eventually(lambda: any('- "GET /x%1B%0A%22INFO HTTP/1.1" 401' in line for line in locked.lines))


@pytest.mark.contract("3.4")
def test_an_upload_can_be_asked_for_only_by_the_keys_that_sent_it(locked, anyone):
    path = f"/proposals?image_id={hashlib.sha256(GREY).hexdigest()}"
    unknown = f"/proposals?image_id={'0' * 64}"
    assert locked.http.post("/detect", content=GREY).status_code == 200
    assert locked.http.get(path).status_code == 200
    foreign, missing = (problem(anyone.get(each, headers=bearer(BOB)), 404) for each in (path, unknown))
    assert foreign | {"request_id": ""} == missing | {"request_id": ""}
    assert anyone.post("/proposals", content=GREY, headers=bearer(BOB)).status_code == 200
    assert anyone.get(path, headers=bearer(BOB)).status_code == 200
    assert locked.http.get(path).status_code == 200


@pytest.mark.contract("3.4")
def test_without_keys_an_upload_belongs_to_the_address_that_sent_it(start, store):
    server = start(MODEL_STORE=store, HOST="0.0.0.0").ready()
    port = server.address[1]
    one, two = (
        httpx.Client(transport=httpx.HTTPTransport(local_address=address), base_url=f"http://127.0.0.1:{port}")
        for address in ("127.0.0.1", "127.0.0.2")
    )
    path = f"/proposals?image_id={hashlib.sha256(GREY).hexdigest()}"
    assert one.post("/detect", content=GREY).status_code == 200
    assert (one.get(path).status_code, two.get(path).status_code) == (200, 404)
    assert two.post("/detect", content=GREY).status_code == 200
    assert two.get(path).status_code == 200
    assert "WARNING service.serve: HOST=0.0.0.0: other machines may reach the service" in server.lines[0]


@pytest.mark.contract("7.3")
def test_keys_change_while_the_service_runs_and_a_request_in_flight_is_finished(start, store, tmp_path):
    file = tmp_path / "keys"
    write(file, alice=ALICE)
    server = start(MODEL_STORE=store, API_KEYS_FILE=file, PUBLIC_METRICS=1).ready()

    def status(key):
        return server.http.get("/models", headers=bearer(key)).status_code

    assert (status(ALICE), status(CAROL)) == (200, 401)
    with socket.create_connection(server.address) as connection:
        connection.settimeout(SOON)
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nX-API-Key: {ALICE}\r\nContent-Length: {len(GREY)}\r\n\r\n"
        connection.sendall(head.encode() + GREY[:50])
        assert server.http.get("/healthz").status_code == 200  # by now the service has read the head above
        server.wait_for("detector_key_requests_total", 1, key="alice")  # the one that `status` has sent
        write(file, carol=CAROL)
        eventually(lambda: (status(ALICE), status(CAROL)) == (401, 200))
        server.wait_for("detector_key_requests_total", 0, key="alice")  # the series of a name that is gone goes too
        connection.sendall(GREY[50:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    file.write_text("carol\n")
    eventually(lambda: any("line 1: write NAME sha256:DIGEST" in line for line in server.lines))
    assert status(CAROL) == 200
    file.write_text("")
    eventually(lambda: status(CAROL) == 401)
    assert any("has no keys: every request gets 401" in line for line in server.lines)


@pytest.mark.contract("7.4")
def test_a_key_over_its_rate_gets_429_and_others_do_not_notice(start, store, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"alice {keys.digest_of(ALICE)} per-second=0.01\nbob {keys.digest_of(BOB)}\n")
    server = start(MODEL_STORE=store, API_KEYS_FILE=file).ready()
    assert server.http.get("/models", headers=bearer(ALICE)).status_code == 200
    refused = server.http.get("/models", headers=bearer(ALICE))
    assert problem(refused, 429)["reason"] == "key_limit"
    assert 90 <= int(refused.headers["retry-after"]) <= 100  # 1 / 0.01 s
    assert server.http.get("/models", headers=bearer(BOB)).status_code == 200


@pytest.mark.contract("7.5")
def test_the_metrics_have_a_port_of_their_own(start, store, file):
    server = start(MODEL_STORE=store, API_KEYS_FILE=file, METRICS_PORT=0, PUBLIC_PAGE=1).ready()
    eventually(lambda: any(line.startswith("metrics alone on ") for line in server.lines))
    (line,) = [line for line in server.lines if line.startswith("metrics alone on ")]
    url = line.split()[-1]
    assert "detector_ready 1.0" in httpx.get(url).text
    assert problem(httpx.get(url.replace("/metrics", "/models")), 404)["reason"] == "unknown_path"
    assert problem(server.http.get("/metrics", headers=bearer(ALICE)), 404)["reason"] == "unknown_path"
    described = server.http.get("/openapi.json").json()
    assert described["paths"]["/detect"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert "security" not in described["paths"]["/healthz"]["get"]
    assert {"401", "429"} <= set(described["paths"]["/models"]["get"]["responses"])
    assert server.http.get("/").status_code == server.http.get("/docs").status_code == 200
