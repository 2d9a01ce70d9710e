"""Fuzzing: whatever a client sends, the service answers or closes the connection, and stays as it was.

By default a run is short and sends the same bytes every time. Longer, with other bytes in every run:

    FUZZ_SECONDS=3600 python -m pytest tests/end_to_end/test_fuzz.py

A conversation that breaks a rule is made as small as possible and saved in build/fuzz. To send it again:

    FUZZ_REPLAY=build/fuzz/….json python -m pytest tests/end_to_end/test_fuzz.py

Hypothesis and not a coverage-guided fuzzer: the parsers of images and JSON are compiled without instrumentation and run
in another process, so that coverage would guide to nothing; Hypothesis knows the grammar and shrinks what it finds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
from hypothesis import HealthCheck, given, settings

from tests.end_to_end.conftest import Server, encoded, eventually, scene
from tests.end_to_end.requests_to_fuzz import conversations
from tests.service import graphs

SHORT = 10  # seconds
HANG = 30  # seconds after which a connection counts as hanging; the service's own deadlines are 10 s and 5 s
# Seconds without an answer after which the client ends its side, if it has asked for the end of the connection or not.
# No result depends on them, only how many conversations get an answer and how many fit into a run.
PATIENT, QUICK = 0.5, 0.02
ROUND = 50  # conversations between two looks at the service
WARM_UP = 3  # rounds before memory and descriptors are measured
MAY_GROW = 64 * 2**20  # bytes: buffers for three uploads, and the arenas of the allocator
SAVED = Path(__file__).parents[2] / "build" / "fuzz"

# Documented: not ready or no memory left, deadline passed, version of HTTP.
DOCUMENTED = {503, 504, 505}
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z]")


class ServiceDiedError(BaseException):
    """The process has ended. No subclass of Exception, so that Hypothesis does not try to shrink without a service."""


@pytest.fixture
def service(start: Callable[..., Server], tmp_path: Path) -> Iterator[Server]:
    graphs.publish(tmp_path / "store")
    running = start(
        MODEL_STORE=tmp_path / "store",
        RECEIVE_TIMEOUT=5,
        MAX_PIXELS=1_000_000,
        MAX_UPLOAD_BYTES=1_000_000,
        RECENT_BYTES=0,
    )
    yield running.ready()
    assert running.stop() == 0


def talk(server: Server, pieces: list[bytes]) -> bytes:
    """Everything that the service answers until the connection is closed by either side."""
    received = b""
    with socket.create_connection(server.address, HANG) as connection:
        with contextlib.suppress(ConnectionError):  # the service may close before it has read everything
            for piece in pieces:
                connection.sendall(piece)
        connection.settimeout(PATIENT if b"\r\nConnection: close\r\n" in b"".join(pieces) else QUICK)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while data := connection.recv(65536):
                received += data
        connection.settimeout(HANG)
        with contextlib.suppress(ConnectionError, OSError):
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):  # TimeoutError: the service neither answers nor closes
                received += data
    return received


def check(server: Server, pieces: list[bytes]) -> None:
    received = talk(server, pieces)
    if server.process.poll() is not None:
        raise ServiceDiedError("".join(server.lines[-20:]))
    assert not received or received.startswith(b"HTTP/1.1 "), received[:200]
    statuses = {int(status) for status in STATUS.findall(received)}
    assert not {status for status in statuses if status >= 500} - DOCUMENTED, received[:2000]


def one_round(server: Server, seed: int) -> None:
    """Sends ROUND conversations. Saves the smallest one that breaks a rule, and raises the error."""
    failing: list[bytes] = []

    @settings(
        max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @hypothesis.seed(seed)
    @given(conversations())
    def send(pieces: list[bytes]) -> None:
        try:
            check(server, pieces)
        except BaseException:
            failing[:] = pieces
            raise

    try:
        send()
    except BaseException:
        if failing:
            print(f"saved in {save(failing)}; FUZZ_REPLAY sends it again")
        raise


def save(pieces: list[bytes]) -> Path:
    text = json.dumps([piece.decode("latin-1") for piece in pieces], indent=1)
    file = SAVED / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def load(file: Path) -> list[bytes]:
    return [piece.encode("latin-1") for piece in json.loads(file.read_text())]


def is_healthy(server: Server) -> None:
    response = server.http.post("/detect", content=encoded(scene(80, 60)))
    assert (response.status_code, len(response.json()["boxes"])) == (200, 2)
    assert server.http.get("/readyz").status_code == 200
    server.wait_for("detector_requests_in_flight", 0)
    assert not [line for line in server.lines if "Traceback" in line], "".join(server.lines[-50:])
    failed = [line for line in server.http.get("/metrics").text.splitlines() if line.startswith("detector_failed")]
    assert server.metric("detector_failed_total") == 0, [*failed, *server.lines[-20:]]


def test_whatever_is_sent_the_service_stays_as_it_was(service: Server) -> None:
    seconds = float(os.environ.get("FUZZ_SECONDS", 0))
    if replay := os.environ.get("FUZZ_REPLAY"):
        check(service, load(Path(replay)))
        is_healthy(service)
        return
    seed = random.randrange(2**32) if seconds else 0
    print(f"seed {seed}")
    ends = time.monotonic() + (seconds or SHORT)
    process = psutil.Process(service.process.pid)
    rounds, memory, descriptors = 0, 0, 0
    while time.monotonic() < ends or rounds <= WARM_UP:
        one_round(service, seed + rounds)
        is_healthy(service)
        rounds += 1
        if rounds == WARM_UP:
            memory, descriptors = process.memory_info().rss, process.num_fds()
    assert process.memory_info().rss < memory + MAY_GROW
    eventually(lambda: process.num_fds() <= descriptors)
    print(f"{rounds * ROUND} conversations")


def test_a_saved_conversation_is_the_same_when_it_is_loaded() -> None:
    pieces = [b"GET /\xff HTTP/1.1\r\n", bytes(range(256))]
    file = save(pieces)
    try:
        assert load(file) == pieces
    finally:
        file.unlink()
