"""The service's answers to unusual clients: chunks, pipelining, split requests, absolute URLs, other protocols."""

import contextlib
import json
import re
import socket
import subprocess
import sys

import pytest
from PIL import Image

from tests.end_to_end.conftest import distinct, encoded, eventually

if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ

PNG = encoded(Image.new("RGB", (100, 80), (90, 120, 30)))
LARGE = PNG + b"\0" * 3_000_000  # decoders ignore bytes after the end of the image
HEAD = b"POST /detect HTTP/1.1\r\nHost: x\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n%b\r\n"

# A header of the request. After a request with Upgrade, h11 reads nothing until the response is sent.
PLAIN, UPGRADE = b"", b"Upgrade: h2c\r\n"
kinds = pytest.mark.parametrize("kind", [PLAIN, UPGRADE], ids=["plain", "upgrade"])


def upload(kind: bytes = PLAIN, image: bytes = PNG) -> bytes:
    return HEAD + kind + b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(image) + image


def until_closed(connection: socket.socket) -> bytes:
    """Everything that the server sends before it closes the connection."""
    connection.settimeout(60)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            received += more
    return received


def wait_until_delivered(connection: socket.socket) -> None:
    """Waits until everything that was sent has reached the server's system, so that later bytes arrive separately."""
    if sys.platform == "linux":
        eventually(lambda: ioctl(connection, TIOCOUTQ, bytes(4)) == bytes(4))


def one_answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the next answer."""
    connection.settimeout(60)
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(1)
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length, head
    body = b""
    while len(body) < int(length[1]):
        body += connection.recv(65536)
    return int(head.split()[1]), body


def test_a_body_in_tiny_chunks_is_refused(server):
    with socket.create_connection(server.address) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 100_000)
        status, body = one_answer(connection)
    assert (status, json.loads(body)["reason"]) == (400, "tiny_chunks")
    assert server.http.get("/healthz").status_code == 200


def test_a_body_in_ordinary_chunks_is_accepted(server):
    image = PNG + b"\0" * 200_000
    response = server.http.post("/detect", content=(image[i : i + 64] for i in range(0, len(image), 64)))
    assert response.status_code == 200


def test_an_image_full_of_line_ends_is_accepted_in_chunks(server):
    image = encoded(Image.new("RGB", (400, 300), (13, 10, 13)), "BMP")
    response = server.http.post("/detect", content=(image[i : i + 65536] for i in range(0, len(image), 65536)))
    assert response.status_code == 200


def test_transfer_encoding_overrides_content_length_and_closes_the_connection(server):
    chunked = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(PNG), PNG)
    with socket.create_connection(server.address) as connection:
        connection.sendall(HEAD + chunked + HEALTH % PLAIN)
        received = until_closed(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200"]
    assert received.lower().count(b"\r\nconnection: close\r\n") == 1


@pytest.mark.parametrize("start", [b"http://x", b"HTTPS://a@b:80", b"http://[::1]:8000"])
def test_the_target_of_a_request_may_be_a_whole_url(server, start):
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


@kinds
def test_a_client_that_sends_an_endless_head_is_disconnected(server, kind):
    with socket.create_connection(server.address) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /healthz HTTP/1.1\r\n" + kind + b"X: yyyyyyyyyyyyyyyy\r\n" * 20_000)
        received = until_closed(connection)
    assert received == b"" or received.startswith(b"HTTP/1.1 431 ")  # a reset may discard the response
    assert server.http.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "mixture", [[PLAIN] * 3, [UPGRADE] * 3, [PLAIN, UPGRADE, PLAIN]], ids=["plain", "upgrade", "mixed"]
)
def test_pipelined_requests_are_answered_in_order(server, mixture):
    uploads = b"".join(map(upload, mixture)) + upload(PLAIN, b"no image")
    with socket.create_connection(server.address) as connection:
        connection.sendall(uploads + HEALTH % b"Connection: close\r\n")
        received = until_closed(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"200", b"200", b"400", b"200"]
    assert received.endswith(b'{"status":"alive"}')


@kinds
@pytest.mark.parametrize("image", [PNG, LARGE], ids=["small", "large"])
def test_a_request_may_be_split_anywhere(server, kind, image):
    request = upload(kind, image)
    head = len(request) - len(image)
    with socket.create_connection(server.address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for cuts in ([], [head], [5], [head - 2], [head + 1], [5, head - 1, head + 20], [len(request) - 1]):
            for start, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
                connection.sendall(request[start:end])
                wait_until_delivered(connection)
            status, body = one_answer(connection)
            assert (status, json.loads(body)["image"]["width"]) == (200, 100)


@kinds
def test_a_short_response_arrives_in_one_piece(server, kind):
    with socket.create_connection(server.address) as connection:
        connection.settimeout(60)
        for _ in range(3):
            connection.sendall(HEALTH % kind)
            received = connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")
            assert received.endswith(b'\r\n\r\n{"status":"alive"}')


@kinds
def test_a_connection_stays_open_if_the_response_was_sent_before_the_body_arrived(server, kind):
    with socket.create_connection(server.address) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\n" + kind + b"Content-Length: 6\r\n\r\nabc")
        assert one_answer(connection)[0] == 404
        connection.sendall(b"def" + upload(kind))
        assert one_answer(connection)[0] == 200


@kinds
def test_a_request_can_be_refused_before_its_body_arrives(server, kind):
    with socket.create_connection(server.address) as connection:
        connection.sendall(HEAD + kind + b"Content-Length: 99999999999\r\n\r\n")
        assert one_answer(connection)[0] == 413


@kinds
@pytest.mark.parametrize("image", [PNG, LARGE], ids=["small", "large"])
def test_a_disconnect_is_noticed_whatever_the_size_of_the_upload(server, kind, image):
    gone = server.metric("detector_request_seconds_count", route="/detect", status="499")
    crowd = [socket.create_connection(server.address) for _ in range(8)]
    for number, connection in enumerate(crowd):
        connection.sendall(upload(kind, distinct(image, number)))
    for connection in crowd:
        connection.close()
    eventually(lambda: server.metric("detector_request_seconds_count", route="/detect", status="499") > gone)
    server.wait_for("detector_requests_in_flight", 0)


def test_clients_that_offer_http2_or_expect_100_continue_are_served_over_http1(server, tmp_path):
    (tmp_path / "image.png").write_bytes(PNG)
    for option in (["--http2"], ["-H", "Expect: 100-continue"], ["--http1.0"]):
        command = ["curl", "-sS", "--fail", *option, "-F", f"image=@{tmp_path}/image.png", f"{server.url}/detect"]
        assert b'"boxes"' in subprocess.run(command, capture_output=True, check=True).stdout
