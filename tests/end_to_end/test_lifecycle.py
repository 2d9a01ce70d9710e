"""Start-up, shutdown, and model stores with faults."""

import contextlib
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from PIL import Image

from service.engine.providers import CUDA, pick_provider
from tests.end_to_end.conftest import encoded, eventually, problem
from tests.service import graphs

SOON = 30  # seconds; limits how long a test waits
GREY = encoded(Image.new("RGB", (96, 64), (102, 102, 102)))


def test_the_announcement_names_the_models_and_the_address(server):
    (line,) = [line for line in server.lines if line.startswith("serving ")]
    assert line.startswith(f"serving shapes/1 on {server.url} (")
    assert "ExecutionProvider" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered_after_a_signal(start, tmp_path, number):
    graphs.publish(tmp_path, work=60)
    server = start(MODEL_STORE=tmp_path).ready()
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(httpx.post, f"{server.url}/detect", content=GREY, timeout=30) for _ in range(3)]
        server.wait_for("detector_requests_in_flight", 3)
        server.process.send_signal(number)
        assert [each.result().json()["scores"] for each in asked] == [[0.4, 0.2]] * 3
    assert server.process.wait(SOON) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address)


@pytest.mark.contract("3.7")
def test_after_sigterm_the_service_is_unready_but_answers_until_the_grace_is_over(start, tmp_path):
    graphs.publish(tmp_path)
    server = start(MODEL_STORE=tmp_path, SHUTDOWN_GRACE=4).ready()
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: server.http.get("/readyz").status_code == 503)
    assert problem(server.http.get("/readyz"), 503)["reason"] == "draining"
    assert server.http.get("/healthz").status_code == 200
    assert httpx.post(f"{server.url}/detect", content=GREY).json()["scores"] == [0.4, 0.2]  # a new connection
    assert 0 < server.metric("detector_draining_seconds") <= time.monotonic() - began
    assert server.process.wait(SOON) == 0
    assert time.monotonic() - began > 3.9


def test_responses_during_the_grace_close_their_connections(start, tmp_path):
    graphs.publish(tmp_path)
    server = start(MODEL_STORE=tmp_path, SHUTDOWN_GRACE=60).ready()
    request = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(GREY)
    with socket.create_connection(server.address) as kept, socket.create_connection(server.address) as waiting:
        kept.sendall(request + GREY)
        assert b"connection: close" not in kept.recv(65536).lower()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        with socket.create_connection(server.address) as new:
            for connection in (kept, waiting, new):
                connection.settimeout(SOON)
                connection.sendall(request + GREY)
                received = b"".join(
                    iter(lambda connection=connection: connection.recv(65536), b"")
                )  # until the server closes it
                assert received.startswith(b"HTTP/1.1 200 ")
                assert b"\r\nconnection: close\r\n" in received.lower()
                assert b'"scores":[0.4,0.2]' in received
    assert server.stop() == 0  # by a second signal, before the grace is over


def test_a_client_that_is_refused_during_the_grace_can_read_the_response_after_sending(start, tmp_path):
    graphs.publish(tmp_path)
    server = start(MODEL_STORE=tmp_path, SHUTDOWN_GRACE=60).ready()
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: server.http.get("/readyz").status_code == 503)
    with socket.create_connection(server.address) as connection:
        connection.settimeout(SOON)
        connection.sendall(b"POST /detect?timeout=1000 HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n")
        connection.sendall(b"a" * 450_000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 422 ")  # refused before the rest of the body is sent
        connection.sendall(b"a" * 450_000)
        while connection.recv(4096):  # the connection is closed, not reset
            pass
    assert server.stop() == 0


def test_a_second_signal_skips_the_grace(start, tmp_path):
    graphs.publish(tmp_path)
    server = start(MODEL_STORE=tmp_path, SHUTDOWN_GRACE=60).ready()
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: server.http.get("/readyz").status_code == 503)
    assert server.stop() == 0


def cpu_seconds(server) -> float:
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


def test_a_model_that_is_still_loading_does_not_delay_the_end_of_the_process(start, tmp_path):
    graphs.publish(tmp_path, version=1)
    server = start(MODEL_STORE=tmp_path, MODEL_POLL_SECONDS=0.1).ready()
    graphs.publish(tmp_path, version=2, work=2500)  # its warm-up takes many seconds
    idle = cpu_seconds(server)
    eventually(lambda: cpu_seconds(server) > idle + 0.5)  # there is nothing else to do
    assert server.stop() == 0
    assert not any("plain/2 is served" in line for line in server.lines)


def test_draining_ends_after_its_timeout(start, tmp_path):
    graphs.publish(tmp_path)
    server = start(MODEL_STORE=tmp_path, DRAIN_TIMEOUT=1, RECEIVE_TIMEOUT=3600).ready()
    with socket.create_connection(server.address) as connection:  # a client that never finishes its request
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        server.wait_for("detector_uploads_in_progress", 1)
        assert server.stop() == 0


@pytest.mark.contract("4.3")
def test_a_faulty_model_is_refused_and_the_others_are_served(start, tmp_path):
    graphs.publish(tmp_path, "plain", 1)
    graphs.publish(tmp_path, "plain", 2)
    graphs.publish(tmp_path, "plain", 3, card={"sha256": "0" * 64})
    graphs.publish(tmp_path, "odd", 1, rename={"boxes": "bboxes"})
    (tmp_path / "default").write_text("plain\n")
    server = start(MODEL_STORE=tmp_path).ready()
    ready = server.http.get("/readyz").json()
    assert sorted(ready["models"]) == ["plain/1", "plain/2"]
    refused = {each["model"]: each["reason"] for each in ready["refused"]}
    assert "SHA-256" in refused["plain/3"]
    assert "boxes is missing" in refused["odd/1"]
    assert server.http.get("/models").json()["refused"] == ready["refused"]
    assert any("odd/1" in line for line in server.lines)
    post = server.http.post
    assert post("/detect", content=GREY).json()["model"] == {"name": "plain", "version": 2}  # the highest version
    assert post("/detect?version=1", content=GREY).json()["model"]["version"] == 1
    assert server.http.get("/models/plain").json()["versions"] == [1, 2]


def test_a_request_is_answered_by_the_model_that_it_names_or_by_the_default(start, tmp_path):
    graphs.publish(tmp_path, "one")
    graphs.publish(tmp_path, "two")
    server = start(MODEL_STORE=tmp_path).ready()
    assert "one, two" in problem(server.http.post("/detect", content=GREY), 422)["detail"]
    assert server.http.post("/detect?model=two", content=GREY).json()["model"]["name"] == "two"
    server = start(MODEL_STORE=tmp_path, DEFAULT_MODEL="one").ready()
    assert server.http.post("/detect", content=GREY).json()["model"]["name"] == "one"
    assert server.http.get("/models").json()["default"] == {"name": "one", "version": 1}
    (tmp_path / "default").write_text("two\n")
    server = start(MODEL_STORE=tmp_path).ready()
    assert server.http.post("/detect", content=GREY).json()["model"]["name"] == "two"


DYING = """
import sys
from service import __main__
from service.engine import engine

execute = engine.Engine.execute
dead = False

def execute_until_dead(self, prepared):
    global dead
    dead = dead or any((canvas.pixels == 255).any() for canvas in prepared.canvases)
    if dead:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0")
    return execute(self, prepared)

engine.Engine.execute = execute_until_dead
sys.exit(__main__.main())
"""


def test_a_dead_engine_ends_the_process_so_that_its_supervisor_restarts_it(start, tmp_path):
    graphs.publish(tmp_path)
    server = start(["-c", DYING], MODEL_STORE=tmp_path, SHUTDOWN_GRACE=60).ready()
    assert server.http.post("/detect", content=GREY).status_code == 200
    white = encoded(Image.new("RGB", (96, 64), "white"))
    document = problem(server.http.post("/detect", content=white), 503)
    assert document["reason"] == "failed"
    assert "700" not in document["detail"]
    with contextlib.suppress(httpx.TransportError):  # the server may have ended
        assert server.http.get("/readyz").status_code == 503
    assert server.process.wait(SOON) == 1  # it did not wait for the grace of 60 s
    assert "the engine fails on every image" in "".join(server.lines)


def ending(server) -> tuple[int, str]:
    """The exit code of the process and everything that it printed."""
    code = server.process.wait(SOON)
    server.reader.join(SOON)
    return code, "".join(server.lines)


@pytest.mark.parametrize(
    ("settings", "code", "word"),
    [
        ({"PORT": "http"}, 2, "PORT='http'"),
        ({"BATCH_PIXELS": 0}, 2, "BATCH_PIXELS"),
        ({"LOG_LEVEL": "loud"}, 2, "LOG_LEVEL"),
        ({"MODEL_STORE": "/nowhere"}, 1, "MODEL_STORE"),
        ({"DEFAULT_MODEL": "unicorn"}, 1, "DEFAULT_MODEL"),
    ],
)
def test_the_service_ends_with_one_line_that_gives_the_reason(start, settings, code, word):
    found, printed = ending(start(**settings))
    assert found == code, printed
    assert word in printed
    assert "Traceback" not in printed


def test_a_store_with_only_faulty_models_ends_the_process(start, tmp_path):
    graphs.publish(tmp_path, card={"sha256": "0" * 64})
    code, printed = ending(start(MODEL_STORE=tmp_path))
    assert code == 1
    assert "plain/1" in printed
    assert "SHA-256" in printed


@pytest.mark.skipif(pick_provider() == CUDA, reason="this machine has a GPU")
def test_cuda_that_is_required_but_missing_ends_the_process(start):
    code, printed = ending(start(REQUIRE_CUDA=1))
    assert code == 1
    assert "REQUIRE_CUDA" in printed


def test_a_port_in_use_ends_the_process(start, server):
    code, printed = ending(start(PORT=server.address[1]))
    assert code != 0
    assert "address already in use" in printed
