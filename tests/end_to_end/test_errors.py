"""Errors of clients: each gets a 4xx response with the fault and the remedy."""

import base64
import contextlib
import socket

import httpx
import pytest
from PIL import Image

from tests.end_to_end.conftest import Server, encoded, problem, scene

PNG = encoded(scene(100, 80))
TEXT = b"This is a text file, not an image."
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
HANG = 30  # seconds after which a socket's read counts as hanging


def part(head: str, body: bytes = PNG, end: str = "\r\n--x--\r\n") -> bytes:
    return f"--x\r\n{head}\r\n\r\n".encode() + body + end.encode()


NAMED = 'Content-Disposition: form-data; name="image"; filename="a.png"'

BODIES = {
    "no body": ({"content": b""}, 400, "no image"),
    "text as an image": ({"content": TEXT, "headers": {"Content-Type": "image/jpeg"}}, 400, "not an image"),
    "text in a form": ({"files": {"image": ("a.jpg", TEXT, "image/jpeg")}}, 400, "not an image"),
    "text in json": ({"json": {"image": base64.b64encode(TEXT).decode()}}, 400, "not an image"),
    "an image cut short": ({"content": PNG[:-40]}, 400, "cut short"),
    "an empty file": ({"files": {"image": b""}}, 400, "no image"),
    "another field": ({"files": {"photo": PNG}}, 400, "one field, image"),
    "two files": ({"files": [("image", PNG), ("image", PNG)]}, 400, "one file"),
    "a file and a parameter": ({"files": {"image": PNG}, "data": {"score_threshold": "1"}}, 400, "query"),
    "text in the field": ({"files": {"image": (None, "hello")}}, 400, "text, not a file"),
    "no boundary": ({"content": part(NAMED), "headers": {"Content-Type": "multipart/form-data"}}, 400, "multipart"),
    "no end": ({"content": part(NAMED, end=""), "headers": FORM}, 400, "form"),
    "no parts": ({"content": b"--x--\r\n", "headers": FORM}, 400, "form"),
    "garbage for a form": ({"content": b"\0" * 1000, "headers": FORM}, 400, "multipart"),
    "a part without a name": ({"content": part("Content-Disposition: form-data"), "headers": FORM}, 400, "multipart"),
    "a part with endless headers": ({"content": part("X: y\r\n" * 5000 + NAMED), "headers": FORM}, 400, "multipart"),
    "a huge text field": (
        {"content": part('Content-Disposition: form-data; name="image"', b"a" * 2**21), "headers": FORM},
        400, "text, not a file",
    ),
    "ten thousand parts": (
        {"content": b"".join(part(NAMED, b"", "\r\n") for _ in range(10_000)), "headers": FORM}, 400, "one file",
    ),
    "a name in no encoding": (
        {"content": part(NAMED.replace("image", "ÿ")), "headers": FORM}, 400, "one field",
    ),
    "broken json": ({"content": b"{", "headers": JSON}, 400, "JSON"),
    "deep json": ({"content": b"[" * 10**6, "headers": JSON}, 400, "JSON"),
    "json of another shape": ({"json": [1]}, 400, "object"),
    "broken base64": ({"json": {"image": "%%%"}}, 400, "base64"),
    "a url": ({"json": {"image": "http://169.254.169.254/"}}, 400, "base64"),
    "a urlencoded form": ({"data": {"image": "x"}}, 415, "multipart/form-data"),
    "a text": ({"content": PNG, "headers": {"Content-Type": "text/plain"}}, 415, "multipart/form-data"),
    "a pickle": ({"content": PNG, "headers": {"Content-Type": "application/vnd.bentoml+pickle"}}, 415, "image/*"),
    "garbage for a type": ({"content": PNG, "headers": {"Content-Type": ";;;=\"\\"}}, 415, "image/*"),
    "a compressed body": ({"content": PNG, "headers": {"Content-Encoding": "gzip"}}, 415, "Content-Encoding"),
}  # fmt: skip


@pytest.mark.parametrize("path", ["/detect", "/proposals"])
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.contract("3.6")
def test_a_body_without_an_image_gets_a_problem_that_names_the_fault(server, path, name):
    request, status, word = BODIES[name]
    assert word in problem(server.http.post(path, **request), status)["detail"]


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("score_threshold=2", "score_threshold"),
        ("score_threshold=-0.1", "score_threshold"),
        ("score_threshold=nan", "score_threshold"),
        ("score_threshold=1e999", "score_threshold"),
        ("score_threshold=", "score_threshold"),
        ("max_detections=0", "max_detections"),
        ("max_detections=-1", "max_detections"),
        ("max_detections=1.5", "max_detections"),
        ("max_proposals=0", "max_proposals"),
        ("proposals=maybe", "proposals"),
        ("timeout=0", "timeout"),
        ("timeout=nan", "timeout"),
        ("timeout=31", "at most 30 s"),
        ("priority=urgent", "interactive"),
        ("label=unicorn", "label"),
        ("version=one", "version"),
        ("version=-1", "version"),
        ("treshold=0.5", "treshold: unknown parameter"),
        ("image_id=" + "0" * 64, "image_id: unknown parameter"),
        ("&".join(f"p{i}=1" for i in range(1000)), "p0"),
    ],
)
@pytest.mark.contract("3.2")
def test_a_bad_parameter_gets_422_and_is_named(server, query, word):
    assert word in problem(server.http.post(f"/detect?{query}", files={"image": PNG}), 422)["detail"]


def test_a_very_large_number_is_accepted(server):
    response = server.http.post("/detect?max_detections=1000000000000", files={"image": PNG})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/DETECT", 404),
        ("GET", "/models/unicorn", 404),
        ("GET", "/models/shapes?version=99", 404),
        ("GET", "/models/..%2f..%2fetc", 404),
        ("POST", "/detect?model=unicorn", 404),
        ("POST", "/detect?version=99", 404),
        ("GET", "/detect", 405),
        ("DELETE", "/models", 405),
        ("TRACE", "/healthz", 405),
        ("GET", "/proposals", 422),
        ("GET", "/proposals?image_id=short", 422),
        ("GET", "/proposals?image_id=" + "0" * 64, 404),
    ],
)
@pytest.mark.contract("3.6")
def test_an_unknown_path_or_method_or_model_or_image_gets_a_problem(server, method, path, status):
    problem(server.http.request(method, path), status)


def test_405_names_the_allowed_method(server):
    assert server.http.get("/detect").headers["allow"] == "POST"


def test_image_id_together_with_an_image_is_refused(server):
    document = problem(server.http.request("GET", "/proposals?image_id=" + "0" * 64, content=PNG), 422)
    assert "image_id" in document["detail"]


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict():
    running = Server(MAX_UPLOAD_BYTES=50_000, MAX_PIXELS=20_000, RECEIVE_TIMEOUT=1, RECENT_BYTES=0).ready()
    yield running
    assert running.stop() == 0


def test_the_problem_for_too_many_bytes_names_the_limit(strict):
    for body in (b"a" * 50_001, iter([b"a" * 30_000] * 100)):  # declared, and chunked
        document = problem(strict.http.post("/detect", content=body), 413)
        assert "50,000 bytes" in document["detail"]
        assert document["limit_bytes"] == 50_000


def test_the_problem_for_too_many_pixels_names_the_limit_over_http(strict):
    data = encoded(Image.new("L", (201, 100)))
    document = problem(strict.http.post("/detect", content=data), 413)
    assert "201 x 100" in document["detail"]
    assert document["limit_pixels"] == 20_000


def test_a_body_declared_too_large_is_refused_before_it_is_sent(strict):
    with socket.create_connection(strict.address, HANG) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        head = connection.recv(4096)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head.lower()


def test_a_client_that_sends_far_too_much_can_still_read_the_problem(strict):
    # httpx reads only after it has sent everything; if the server closed at once, httpx would get a reset
    response = strict.http.post("/detect", content=b"a" * 20_000_000)
    assert "50,000 bytes" in problem(response, 413)["detail"]


def test_an_upload_that_stalls_gets_408_and_the_connection_is_closed(strict):
    with socket.create_connection(strict.address, HANG) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        while connection.recv(4096):  # until the server closes the connection
            pass


def test_a_client_that_keeps_sending_slowly_can_still_read_the_408(strict):
    with socket.create_connection(strict.address) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n")
        connection.settimeout(0.05)
        answer, sent_on = b"", 0
        while sent_on < 10:
            connection.sendall(b"a")  # raises if the connection was reset
            with contextlib.suppress(TimeoutError):
                answer += connection.recv(4096)
            sent_on += bool(answer)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    ("version", "header"), [(b"1.1", b"Connection: close\r\n"), (b"1.0", b"")], ids=["close", "HTTP/1.0"]
)
def test_a_client_that_reads_only_after_sending_can_read_its_answer_before_the_connection_closes(
    server, version, header
):
    request = b"POST /detect?timeout=1000 HTTP/%b\r\nHost: x\r\n%bContent-Length: 900000\r\n\r\n" % (version, header)
    refused = server.metric("detector_rejected_total", reason="parameter")
    with socket.create_connection(server.address, HANG) as connection:
        connection.sendall(request + b"a" * 450_000)
        server.wait_for("detector_rejected_total", refused + 1, reason="parameter")  # in the middle of its body
        connection.sendall(b"a" * 450_000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 422 ")


def test_without_recent_uploads_every_image_id_is_unknown(strict):
    found = strict.http.post("/proposals", content=PNG).json()
    problem(strict.http.get("/proposals", params={"image_id": found["image"]["id"]}), 404)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GARBAGE\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
)
def test_a_request_that_is_not_valid_http_is_refused_and_the_service_continues(strict, head):
    with socket.create_connection(strict.address, HANG) as connection:
        connection.sendall(head)
        try:
            answered = connection.recv(4096)
        except ConnectionResetError:
            answered = b""
    assert answered == b"" or answered.startswith(b"HTTP/1.1 4")
    assert strict.http.get("/readyz").status_code == 200


def test_a_forged_host_header_changes_nothing(server):
    response = httpx.get(f"{server.url}/models/unicorn", headers={"Host": "x/healthz?"})
    assert response.status_code in (400, 404)


def test_none_of_these_errors_counts_as_a_failure_of_the_service(server, strict):
    for each in (server, strict):
        assert each.metric("detector_failed_total") == 0
        assert not [line for line in each.lines if "Traceback" in line]
