"""Clients that are slow, endless or speak another protocol."""

import contextlib
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from service import connections
from tests.end_to_end.conftest import encoded

PNG = encoded(Image.new("RGB", (100, 80), (90, 120, 30)))
HEAD = b"POST /detect HTTP/1.1\r\nHost: x\r\n"


def answered(connection: socket.socket, timeout: float = 5) -> bytes:
    """All that the server says before it closes or falls silent."""
    connection.settimeout(timeout)
    said = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while received := connection.recv(65536):
            said += received
    return said


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
    picture = PNG + b"\0" * 200_000
    response = server.http.post("/detect", content=(picture[i : i + 64] for i in range(0, len(picture), 64)))
    assert response.status_code == 200


def test_a_head_without_end_is_cut_off(server):
    with socket.create_connection(server.address) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /healthz HTTP/1.1\r\n" + b"X: yyyyyyyyyyyyyyyy\r\n" * 20_000)
        said = answered(connection)
    assert said == b"" or said.startswith(b"HTTP/1.1 400 ")  # it may be reset before it has read so much
    assert server.http.get("/readyz").status_code == 200


def test_what_does_not_come_is_given_up(server):
    # nothing at all; half a head; and the body of a request that has its answer already
    beginnings = [b"", b"GET /hea", HEAD, b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nabc"]

    def wait(sent: bytes) -> tuple[bytes, float]:
        with socket.create_connection(server.address) as connection:
            connection.sendall(sent)
            began = time.monotonic()
            return answered(connection, connections.SECONDS + 5), time.monotonic() - began

    with ThreadPoolExecutor(len(beginnings)) as pool:
        ends = list(pool.map(wait, beginnings))
    assert [said[:12] for said, _ in ends] == [b"", b"", b"", b"HTTP/1.1 404"]
    assert all(waited < connections.SECONDS + 3 for _, waited in ends)


def test_requests_one_behind_another_are_answered_in_turn(server):
    head = HEAD + b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(PNG)
    with socket.create_connection(server.address) as connection:
        connection.sendall((head + PNG) * 3 + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = answered(connection)
    assert said.count(b"HTTP/1.1 200 OK") == 4
    assert said.endswith(b'{"status":"alive"}')


def test_who_offers_http2_or_asks_before_sending_is_served_in_http1(server, tmp_path):
    (tmp_path / "picture.png").write_bytes(PNG)
    for option in (["--http2"], ["-H", "Expect: 100-continue"], ["--http1.0"]):
        command = ["curl", "-sS", "--fail", *option, "-F", f"image=@{tmp_path}/picture.png", f"{server.url}/detect"]
        assert b'"boxes"' in subprocess.run(command, capture_output=True, check=True).stdout
