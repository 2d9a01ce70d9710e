"""UDS: the service on a Unix socket."""

import signal
import socket
import stat
import time

import httpx
import pytest

from tests.end_to_end.conftest import Server

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")


def client(path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://service", timeout=60)


def wait_until_ready(server: Server, path) -> httpx.Client:
    deadline = time.monotonic() + 60
    http = client(path)
    while time.monotonic() < deadline:
        if any(line.startswith("serving ") for line in server.lines):
            return http
        assert server.process.poll() is None, "".join(server.lines)
        time.sleep(0.05)
    raise AssertionError("".join(server.lines))


@pytest.mark.contract("7.7")
def test_the_service_listens_on_a_unix_socket_and_removes_it(start, tmp_path):
    path = tmp_path / "s"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()  # the file remains, as after SIGKILL
    server = start(UDS=path, UDS_MODE="600", ACCESS_LOG=1, TRUSTED_PROXIES="unix")
    http = wait_until_ready(server, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    answer = http.post("/detect", content=b"hello", headers={"X-Forwarded-For": "192.0.2.7"})
    assert answer.json()["detail"].startswith("The upload is text, not an image.")
    assert http.get("/healthz").status_code == 200
    second = start(UDS=path)
    assert second.process.wait(30) == 1
    second.reader.join(10)
    assert "another program listens on this socket" in "".join(second.lines)
    assert server.stop(signal.SIGTERM) == 0
    server.reader.join(10)
    assert not path.exists()
    assert f"on unix:{path} (" in "".join(server.lines)
    assert any('192.0.2.7 - "POST /detect' in line for line in server.lines)
    assert any('- - "GET /healthz' in line for line in server.lines)


def test_metrics_may_be_on_a_port_beside_the_socket(start, tmp_path):
    path = tmp_path / "s"
    server = start(UDS=path, METRICS_PORT=0)
    http = wait_until_ready(server, path)
    assert http.get("/metrics").status_code == 404
    deadline = time.monotonic() + 10
    while not (lines := [line for line in server.lines if line.startswith("metrics alone on ")]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert httpx.get(lines[0].split()[-1]).status_code == 200


@pytest.mark.parametrize("kind", ["file", "folder", "missing", "long"])
def test_a_path_that_cannot_be_a_socket_is_one_line(start, tmp_path, kind):
    path = {"missing": tmp_path / "no" / "s", "long": tmp_path / ("x" * 120)}.get(kind, tmp_path / "s")
    if kind == "file":
        path.write_text("keep me")
    elif kind == "folder":
        path.mkdir()
    server = start(UDS=path)
    assert server.process.wait(30) == 1
    server.reader.join(10)
    (line,) = [line for line in server.lines if "UDS=" in line]
    words = {"file": "is not a socket", "folder": "is not a socket", "missing": "cannot listen", "long": "too long"}
    assert words[kind] in line
    if kind == "file":
        assert path.read_text() == "keep me"
