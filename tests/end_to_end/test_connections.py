"""Clients that are slow, endless or speak another protocol; and that both parsers keep the same promises."""

import contextlib
import json
import re
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from service.http.connections import Connection
from tests.end_to_end.conftest import distinct, encoded, eventually

PNG = encoded(Image.new("RGB", (100, 80), (90, 120, 30)))
LARGE = PNG + b"\0" * 3_000_000  # decoders stop at an image's end
HEAD = b"POST /detect HTTP/1.1\r\nHost: x\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n%b\r\n"

# What a head has in it to be left to h11, if anything.
PLAIN, ODD = b"", b"Upgrade: h2c\r\n"
both_parsers = pytest.mark.parametrize("kind", [PLAIN, ODD], ids=["plain", "odd"])


def upload(kind: bytes = PLAIN, image: bytes = PNG) -> bytes:
    return HEAD + kind + b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(image) + image


def answered(connection: socket.socket, timeout: float = 5) -> bytes:
    """All that the server says before it closes or falls silent."""
    connection.settimeout(timeout)
    said = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while received := connection.recv(65536):
            said += received
    return said


def one_answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the next answer."""
    connection.settimeout(20)
    said = b""
    while b"\r\n\r\n" not in said:
        said += connection.recv(1)
    found = re.search(rb"(?i)content-length: (\d+)", said)
    assert found, said
    body = b""
    while len(body) < int(found[1]):
        body += connection.recv(65536)
    return int(said.split()[1]), body


def test_a_body_in_tiny_chunks_is_cut_off_before_it_holds_anyone_up(server):
    with socket.create_connection(server.address) as connection, contextlib.suppress(ConnectionError):
        began = time.monotonic()
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b"1\r\na\r\n" * 1000)
        raise AssertionError("a million chunks were taken")
    assert time.monotonic() - began < 2
    assert server.http.get("/healthz").elapsed.total_seconds() < 1


def test_a_body_in_ordinary_chunks_is_taken(server):
    image = PNG + b"\0" * 200_000
    response = server.http.post("/detect", content=(image[i : i + 64] for i in range(0, len(image), 64)))
    assert response.status_code == 200


def test_an_image_full_of_line_ends_is_taken_in_chunks(server):
    image = encoded(Image.new("RGB", (400, 300), (13, 10, 13)), "BMP")
    response = server.http.post("/detect", content=(image[i : i + 65536] for i in range(0, len(image), 65536)))
    assert response.status_code == 200


def test_a_body_of_two_lengths_is_read_in_chunks_and_its_connection_closed(server):
    chunked = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(PNG), PNG)
    with socket.create_connection(server.address) as connection:
        connection.sendall(HEAD + chunked + HEALTH % PLAIN)
        said = answered(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200"]
    assert said.lower().count(b"\r\nconnection: close\r\n") == 1


@pytest.mark.parametrize("start", [b"http://x", b"HTTPS://a@b:80", b"http://[::1]:8000"])
def test_a_target_may_be_a_whole_url(server, start):
    with socket.create_connection(server.address) as connection:
        for target, status in (
            (b"/healthz", 200),
            (b"/healthz?a=http://b/c", 200),
            (b"", 200),
            (b"?a", 200),
            (b"/no", 404),
        ):
            connection.sendall(b"GET " + start + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one_answer(connection)[0] == status, target


@both_parsers
def test_a_head_without_end_is_cut_off(server, kind):
    with socket.create_connection(server.address) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /healthz HTTP/1.1\r\n" + kind + b"X: yyyyyyyyyyyyyyyy\r\n" * 20_000)
        said = answered(connection)
    assert said == b"" or said.startswith(b"HTTP/1.1 400 ")  # it may be reset before it has read so much
    assert server.http.get("/readyz").status_code == 200


def test_what_does_not_come_is_given_up(server):
    late = b"POST /nothing HTTP/1.1\r\nHost: x\r\n%bContent-Length: 9999\r\n\r\nabc"
    beginnings = {
        b"": [],
        b"GET /hea": [],
        HEAD: [],
        HEALTH % PLAIN + b"GET /hea": [b"200"],  # half a head behind a whole request
        HEALTH % ODD + b"GET /hea": [b"200"],
        late % PLAIN: [b"404"],  # the body of a request that has its answer already
        late % ODD: [b"404"],
    }

    def wait(sent: bytes) -> tuple[list[bytes], float]:
        with socket.create_connection(server.address) as connection:
            connection.sendall(sent)
            began = time.monotonic()
            said = answered(connection, Connection.deadlines.read + 5)
            return re.findall(rb"HTTP/1.1 (\d+)", said), time.monotonic() - began

    with ThreadPoolExecutor(len(beginnings)) as pool:
        ends = list(pool.map(wait, beginnings))
    assert [statuses for statuses, _ in ends] == list(beginnings.values())
    assert all(waited < Connection.deadlines.read + 3 for _, waited in ends)


@pytest.mark.parametrize(
    "kinds", [[PLAIN] * 3, [ODD] * 3, [PLAIN, ODD, PLAIN]], ids=["plain", "odd", "plain, then odd"]
)
def test_requests_one_behind_another_are_answered_in_turn(server, kinds):
    uploads = b"".join(map(upload, kinds)) + upload(PLAIN, b"no image")
    with socket.create_connection(server.address) as connection:
        connection.sendall(uploads + HEALTH % b"Connection: close\r\n")
        said = answered(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"200", b"200", b"400", b"200"]
    assert said.endswith(b'{"status":"alive"}')


@both_parsers
@pytest.mark.parametrize("image", [PNG, LARGE], ids=["small", "large"])
def test_it_does_not_matter_where_a_request_is_cut(server, kind, image):
    request = upload(kind, image)
    head = len(request) - len(image)
    with socket.create_connection(server.address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for cuts in ([], [head], [5], [head - 2], [head + 1], [5, head - 1, head + 20], [len(request) - 1]):
            for start, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
                connection.sendall(request[start:end])
                time.sleep(0.02)
            status, body = one_answer(connection)
            assert (status, json.loads(body)["image"]["width"]) == (200, 100)


@both_parsers
def test_a_short_answer_comes_in_one_piece(server, kind):
    with socket.create_connection(server.address) as connection:
        connection.settimeout(5)
        for _ in range(3):
            connection.sendall(HEALTH % kind)
            said = connection.recv(65536)
            assert said.startswith(b"HTTP/1.1 200 ")
            assert said.endswith(b'\r\n\r\n{"status":"alive"}')


@both_parsers
def test_a_connection_is_kept_after_an_answer_that_came_before_the_body(server, kind):
    with socket.create_connection(server.address) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\n" + kind + b"Content-Length: 6\r\n\r\nabc")
        assert one_answer(connection)[0] == 404
        connection.sendall(b"def" + upload(kind))
        assert one_answer(connection)[0] == 200


@both_parsers
def test_a_refusal_comes_before_the_body(server, kind):
    with socket.create_connection(server.address) as connection:
        connection.sendall(HEAD + kind + b"Content-Length: 99999999999\r\n\r\n")
        assert one_answer(connection)[0] == 413


@both_parsers
@pytest.mark.parametrize("image", [PNG, LARGE], ids=["small", "large"])
def test_who_leaves_is_noticed_at_any_size(server, kind, image):
    gone = server.metric("detector_request_seconds_count", route="/detect", status="499")
    crowd = [socket.create_connection(server.address) for _ in range(8)]
    for number, connection in enumerate(crowd):
        connection.sendall(upload(kind, distinct(image, number)))
    for connection in crowd:
        connection.close()
    eventually(lambda: server.metric("detector_request_seconds_count", route="/detect", status="499") > gone)
    server.wait_for("detector_requests_in_flight", 0)


def test_who_offers_http2_or_asks_before_sending_is_served_in_http1(server, tmp_path):
    (tmp_path / "image.png").write_bytes(PNG)
    for option in (["--http2"], ["-H", "Expect: 100-continue"], ["--http1.0"]):
        command = ["curl", "-sS", "--fail", *option, "-F", f"image=@{tmp_path}/image.png", f"{server.url}/detect"]
        assert b'"boxes"' in subprocess.run(command, capture_output=True, check=True).stdout
