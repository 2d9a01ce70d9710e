"""A well-behaved client beside hostile ones: slow senders, slow readers, idle, greedy and garbled ones.

`faster-rcnn benchmark siege` measures the same with thousands of clients and default limits. Here they are few, and the
limits are low. The well-behaved client must get every answer, and the metrics must count what the others occupied.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.siege.attackers import Attack, Attackers, Images
from tests.end_to_end.conftest import Server, distinct, encoded, eventually
from tests.service import graphs

HANG = 60  # seconds after which a read from a socket counts as hanging
PNG = encoded(Image.new("RGB", (100, 80), (90, 120, 30)))
ENOUGH = 400_000  # bytes of a body: more than a connection buffers before the service reads it, 2**18
HEAD = "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n{more}\r\n"

Start = Callable[..., Server]

needs_proc = pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs /proc")
needs_addresses = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")


def noise(side: int, seed: int = 0) -> bytes:
    """A JPEG of noise. Drawn as PNG it has about 3 bytes for each of its side × side pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", quality=75)


def connect(server: Server, receive_buffer: int | None = None, source: str = "127.0.0.1") -> socket.socket:
    connection = socket.socket()
    connection.settimeout(HANG)
    connection.bind((source, 0))
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(server.address)
    return connection


@pytest.fixture
def crowd() -> Iterator[contextlib.ExitStack]:
    """Closes the sockets of a test."""
    with contextlib.ExitStack() as stack:
        yield stack


def upload(image: bytes, *, announced: int | None = None, path: str = "/detect", **headers: str) -> bytes:
    """A request with `image`.  announced: its Content-Length, if the image is only the beginning of the body."""
    fields = {"Content-Length": str(len(image) if announced is None else announced)} | headers
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return HEAD.format(path=path, more=more).encode() + image


def stalled(server: Server, crowd: contextlib.ExitStack, sent: int = 500, of: int = 1000, **headers: str):
    """A connection on which the first `sent` bytes of an image arrived, `of` bytes in all."""
    connection = crowd.enter_context(connect(server))
    connection.sendall(upload((PNG + bytes(sent))[:sent], announced=of, **headers))
    return connection


def one_answer(connection: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def arrived(connection: socket.socket) -> bytes | None:
    """The next byte, which stays to be read; empty if the connection has ended, None if nothing has arrived."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""
    finally:
        connection.settimeout(HANG)


def is_closed(connection: socket.socket) -> bool:
    """Whether the service has closed this connection, on which nothing is left to read."""
    return arrived(connection) == b""


def is_readable(connection: socket.socket) -> bool:
    """Whether an answer, or the end of the connection, has arrived."""
    return arrived(connection) is not None


def closed(server: Server, reason: str) -> float:
    return server.metric("detector_connections_closed_total", reason=reason)


def wait_until_calm(server: Server) -> None:
    """Waits until no client but the one that asks for the metrics occupies anything."""
    server.wait_for("detector_uploads_in_progress", 0)
    server.wait_for("detector_requests_in_flight", 0)
    server.wait_for("detector_unsent_bytes", 0)
    server.wait_for("detector_queue_depth", 0)
    server.wait_for("detector_connections", 1)


# --- slow senders -----------------------------------------------------------------------------------------------------


@pytest.mark.contract("3.10")
def test_uploads_that_have_not_arrived_occupy_no_place_in_the_queue(start: Start, crowd):
    server = start(MAX_IN_FLIGHT=2, RECEIVE_TIMEOUT=HANG, MIN_TRANSFER_RATE=1).ready()
    uploads = [stalled(server, crowd) for _ in range(10)]
    server.wait_for("detector_uploads_in_progress", 10)
    for number in range(5):
        assert server.http.post("/detect", content=distinct(PNG, number)).status_code == 200
        assert server.metric("detector_requests_in_flight") == 0
    for connection in uploads:  # they are late, but complete
        connection.sendall(bytes(500))
        assert one_answer(connection)[0] == 200
    assert server.metric("detector_rejected_total", reason="overloaded") == 0
    crowd.close()
    wait_until_calm(server)


@pytest.mark.contract("3.10")
def test_stalled_uploads_in_every_place_give_way_to_a_client_that_sends_at_once(start: Start, crowd):
    server = start(MAX_UPLOADS=4, RECEIVE_TIMEOUT=HANG, MIN_TRANSFER_RATE=1).ready()
    for _ in range(20):
        stalled(server, crowd, ENOUGH, 2_000_000)
    server.wait_for("detector_uploads_in_progress", 20)
    image = PNG + bytes(1_000_000)
    statuses = [server.http.post("/detect", content=distinct(image, number)).status_code for number in range(10)]
    assert statuses == [200] * 10
    assert closed(server, "evicted_upload") >= 1
    assert "MAX_UPLOADS" in "".join(server.lines)
    crowd.close()
    wait_until_calm(server)


def test_a_client_that_is_displaced_is_told_so(start: Start, crowd):
    server = start(MAX_UPLOADS=1, RECEIVE_TIMEOUT=HANG, MIN_TRANSFER_RATE=1).ready()
    first = stalled(server, crowd, ENOUGH, 2_000_000)
    server.wait_for("detector_uploads_in_progress", 1)
    assert server.http.post("/detect", content=PNG + bytes(1_000_000)).status_code == 200
    status, body = one_answer(first)
    assert status == 429, body
    assert closed(server, "evicted_upload") == 1


@pytest.mark.contract("3.10")
def test_clients_that_are_too_slow_are_cut_and_counted_by_reason(start: Start, crowd):
    server = start(RECEIVE_TIMEOUT=HANG).ready()  # the minimum rate ends an upload long before that
    heads = [crowd.enter_context(connect(server)) for _ in range(5)]
    for connection in heads:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    silent = [crowd.enter_context(connect(server)) for _ in range(5)]
    bodies = [stalled(server, crowd, 10) for _ in range(5)]
    chunked = [crowd.enter_context(connect(server)) for _ in range(5)]
    for connection in chunked:
        connection.sendall(HEAD.format(path="/detect", more="Transfer-Encoding: chunked\r\n").encode() + b"1\r\nx\r\n")
    good = 0
    for connection in heads + silent + bodies + chunked:
        while not is_readable(connection):
            assert server.http.post("/detect", content=distinct(PNG, good)).status_code == 200
            good += 1
    for connection in bodies + chunked:
        status, body = one_answer(connection)
        assert (status, b'"slow_upload"' in body) == (408, True)
    for connection in heads + silent:
        assert connection.recv(4096)[:12] in (b"", b"HTTP/1.1 408")
    assert closed(server, "slow_upload") == 10
    assert closed(server, "head_timeout") == 10
    wait_until_calm(server)


# --- clients behind a proxy -------------------------------------------------------------------------------------------


def test_uploads_behind_a_trusted_proxy_count_for_the_forwarded_address(start: Start, crowd):
    server = start(
        TRUSTED_PROXIES="127.0.0.1", MAX_UPLOADS_PER_CLIENT=1, RECEIVE_TIMEOUT=HANG, MIN_TRANSFER_RATE=1
    ).ready()
    others = [stalled(server, crowd, ENOUGH, 500_000, X_Forwarded_For=f"198.51.100.{n}") for n in range(3)]
    one = [stalled(server, crowd, ENOUGH, 500_000, X_Forwarded_For="203.0.113.9") for _ in range(3)]
    eventually(lambda: any(is_readable(connection) for connection in one))
    for connection in others:  # each is alone at its address
        connection.sendall(bytes(100_000))
        assert one_answer(connection)[0] == 200
    refused = next(connection for connection in one if is_readable(connection))
    assert one_answer(refused)[0] == 429
    assert closed(server, "evicted_upload") >= 1


def test_a_forwarded_address_counts_only_from_a_trusted_proxy(start: Start, crowd):
    server = start(MAX_UPLOADS_PER_CLIENT=1, RECEIVE_TIMEOUT=HANG, MIN_TRANSFER_RATE=1).ready()
    uploads = [stalled(server, crowd, ENOUGH, 500_000, X_Forwarded_For=f"198.51.100.{n}") for n in range(3)]
    eventually(lambda: any(is_readable(connection) for connection in uploads))
    refused = next(connection for connection in uploads if is_readable(connection))
    assert one_answer(refused)[0] == 429


@needs_addresses
@pytest.mark.contract("3.10")
def test_an_image_does_not_wait_behind_all_those_of_another_client(start: Start, crowd, tmp_path):
    graphs.publish(tmp_path, work=40)  # a run takes at least 0.2 s
    server = start(MODEL_STORE=tmp_path, MAX_IN_FLIGHT=20, ENGINE_WORKERS=1, ENGINE_THREADS=1, BATCH_PIXELS=1).ready()
    with ThreadPoolExecutor(6) as pool:  # from these the service learns how long an image takes while others wait
        list(pool.map(lambda number: server.http.post("/detect", content=distinct(PNG, 100 + number)), range(6)))
    greedy = []
    for number in range(30):
        greedy.append(crowd.enter_context(connect(server, source="127.0.0.2")))
        greedy[-1].sendall(upload(distinct(PNG, number)))
    eventually(lambda: sum(map(is_readable, greedy)) >= 10)  # the places are taken, and the others are refused
    assert server.http.post("/detect", content=PNG).status_code == 200
    waiting = 30 - sum(map(is_readable, greedy))
    assert waiting >= 5  # in the order of arrival it would be 0
    assert sorted(one_answer(connection)[0] for connection in greedy) == [200] * 20 + [429] * 10


# --- slow readers -----------------------------------------------------------------------------------------------------

# The system buffers up to 4 MB for a client (tcp_wmem), less than the longer and more than the shorter response.
LONG, SHORT = 2200, 800  # pixels; drawn, such an image of noise has 14.5 and 1.9 million bytes


def drawn(side: int) -> int:
    """The bytes of an image of noise as PNG, at least."""
    return 3 * side * side


@pytest.fixture(scope="module")
def large() -> bytes:
    return noise(LONG)


def slow_reader(server: Server, crowd: contextlib.ExitStack, image: bytes) -> socket.socket:
    """A connection that asked for a drawn image and took the first byte of it."""
    connection = crowd.enter_context(connect(server, 4096))
    connection.sendall(upload(image, Accept="image/png"))
    assert connection.recv(1) == b"H"
    return connection


def rest_of(connection: socket.socket, side: int = LONG) -> int:
    """How many more bytes arrive before the connection closes or the response is complete."""
    received = 0
    with contextlib.suppress(ConnectionError):
        while received < drawn(side) and (size := len(connection.recv(2**20))):
            received += size
    return received


@pytest.mark.parametrize("side", [LONG, SHORT], ids=["long", "short"])
def test_a_request_stays_in_flight_until_its_response_is_received(start: Start, crowd, side):
    server = start().ready()
    reader = slow_reader(server, crowd, noise(side))
    assert server.metric("detector_requests_in_flight") == 1
    assert server.metric("detector_unsent_bytes") > drawn(side) / 2
    assert rest_of(reader, side) >= drawn(side)
    server.wait_for("detector_requests_in_flight", 0)
    server.wait_for("detector_unsent_bytes", 0)
    assert closed(server, "evicted_reader") == closed(server, "slow_reader") == 0


@pytest.mark.contract("3.10")
def test_a_slow_reader_gives_way_to_a_client_that_needs_its_place(start: Start, crowd, large):
    server = start(MAX_IN_FLIGHT=2).ready()  # of which drawn images, being bulk, may occupy one
    reader = slow_reader(server, crowd, large)
    server.wait_for("detector_requests_in_flight", 1)
    statuses = [server.http.post("/detect", content=distinct(PNG, number)).status_code for number in range(5)]
    assert statuses == [200] * 5

    def draws() -> bool:
        return server.http.post("/detect", content=PNG, headers={"Accept": "image/png"}).status_code == 200

    eventually(draws)  # the reader has two seconds; until then the answer is 429
    assert closed(server, "evicted_reader") == 1
    assert rest_of(reader) < drawn(LONG)
    assert all(draws() for _ in range(3))
    crowd.close()
    wait_until_calm(server)


def test_unsent_responses_have_a_limit_in_bytes(start: Start, crowd, large):
    server = start().ready()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: slow_reader(server, crowd, distinct(large, n)), range(10)))  # 145 MB in all
    # The limit is 32 MiB, so at most two of them fit. One that has just begun may exceed it for two seconds.
    eventually(lambda: server.metric("detector_unsent_bytes") <= 2**25)
    assert closed(server, "evicted_reader") >= 8
    assert server.http.post("/detect", content=PNG).status_code == 200
    crowd.close()
    wait_until_calm(server)


# --- idle connections and descriptors ---------------------------------------------------------------------------------

LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
runpy.run_module("service", run_name="__main__")
"""


def descriptors(soft: int, hard: int) -> tuple[str, str]:
    """The program that starts the service with these limits on file descriptors."""
    return "-c", LIMITED.format(soft=soft, hard=hard)


@needs_proc
def test_the_soft_limit_on_descriptors_is_raised(start: Start):
    server = start(descriptors(100, 200)).ready()
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    found = re.search(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE)
    assert found
    assert found.groups() == ("200", "200")


@needs_proc
@pytest.mark.parametrize("requests", [1, 0], ids=["keep-alive", "silent"])
def test_when_descriptors_run_short_the_longest_idle_connection_gives_way(start: Start, crowd, tmp_path, requests):
    graphs.publish(tmp_path)
    server = start(descriptors(128, 128), MODEL_STORE=tmp_path).ready()
    idle = []
    for _ in range(200):
        connection = crowd.enter_context(connect(server))
        if requests:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one_answer(connection)[0] == 200
        idle.append(connection)
    with contextlib.closing(http.client.HTTPConnection(*server.address, timeout=HANG)) as probe:
        probe.request("GET", "/healthz")
        assert probe.getresponse().read() == b'{"status":"alive"}'
    assert server.http.post("/detect", content=PNG).status_code == 200

    eventually(lambda: sum(map(is_closed, idle)) == closed(server, "connection_limit"))
    gone = [is_closed(connection) for connection in idle]
    assert gone == sorted(gone, reverse=True)  # the longest idle ones
    assert gone[0]
    assert not gone[-1]
    named = [line for line in server.lines if "MAX_CONNECTIONS" in line and "longest idle" in line]
    assert len(named) == 1

    graphs.publish(tmp_path, version=2)  # descriptors are left for the store
    eventually(lambda: server.http.post("/detect?model=plain&version=2", content=PNG).status_code == 200)
    assert "Too many open files" not in "".join(server.lines)


@needs_proc
def test_stalled_uploads_do_not_exhaust_the_descriptors(start: Start, crowd):
    server = start(descriptors(128, 128), RECEIVE_TIMEOUT=HANG, MIN_TRANSFER_RATE=1).ready()
    uploads = []
    for _ in range(200):
        with contextlib.suppress(ConnectionError):
            uploads.append(stalled(server, crowd))
    # No connection is idle. An upload can be displaced once it has had its two seconds.
    eventually(lambda: one_request(server, "/healthz") == 200)
    assert one_request(server, "/metrics") == 200


def one_request(server: Server, path: str) -> int | None:
    """The status of a request on a new connection; None if it is closed."""
    with contextlib.closing(http.client.HTTPConnection(*server.address, timeout=HANG)) as connection:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
        except (http.client.HTTPException, ConnectionError):
            return None
        return response.status


# --- all together -----------------------------------------------------------------------------------------------------

CROWD = {
    "slow-head": 20,
    "slow-body": 20,
    "half-body": 20,
    "slow-chunks": 20,
    "slow-reader": 4,
    "idle": 20,
    "idle-keepalive": 20,
    "never-reads": 10,
    "greedy": 4,
    "garbage": 10,
}


@pytest.mark.contract("3.10")
def test_a_well_behaved_client_gets_every_answer_beside_all_kinds_of_hostile_ones(start: Start):
    server = start(MAX_IN_FLIGHT=16, MAX_UPLOADS=4, RECEIVE_TIMEOUT=5).ready()
    images = Images(PNG, noise(600))
    attacks = [Attack(kind, clients, *server.address, images) for kind, clients in CROWD.items()]
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(len(CROWD)) as pool:
            attackers = [stack.enter_context(contextlib.closing(each)) for each in pool.map(Attackers, attacks)]
        responses = [server.http.post("/detect", content=distinct(PNG, number)) for number in range(40)]
        assert [response.status_code for response in responses] == [200] * 40
        suffered = dict(zip(CROWD, [each.stop() for each in attackers], strict=True))
    assert suffered["greedy"].answers["200"] > 0
    assert suffered["garbage"].answers["400"] > 0
    assert all(one.opened > 0 for one in suffered.values())
    wait_until_calm(server)
    assert server.metric("detector_failed_total") == 0
    assert server.process.poll() is None


# --- well-behaved libraries -------------------------------------------------------------------------------------------


def test_a_connection_can_be_used_again_after_every_kind_of_refusal(start: Start, tmp_path):
    server = start(MAX_UPLOAD_BYTES=100_000, MAX_PIXELS=10_000).ready()
    refused: list[tuple[str, str, bytes, dict[str, str], int]] = [
        ("POST", "/nothing", PNG, {}, 404),
        ("PUT", "/detect", PNG, {}, 405),
        ("POST", "/detect", b"no image", {}, 400),
        ("POST", "/detect", b"", {}, 400),
        ("POST", "/detect", encoded(Image.new("RGB", (200, 200))), {}, 413),
        ("POST", "/detect", PNG + bytes(200_000), {}, 413),
        ("POST", "/detect", PNG, {"Content-Encoding": "gzip"}, 415),
        ("POST", "/detect?score_threshold=2", PNG, {}, 422),
        ("POST", "/detect?model=unknown", PNG, {}, 404),
    ]
    with contextlib.closing(http.client.HTTPConnection(*server.address, timeout=HANG)) as client:
        client.connect()
        used = client.sock
        for method, path, body, headers, status in refused:
            client.request(method, path, body, headers)
            response = client.getresponse()
            response.read()
            assert response.status == status, path
            client.request("POST", "/detect", PNG)
            answer = client.getresponse()
            answer.read()
            assert answer.status == 200
            assert client.sock is used, path  # http.client would open a new one after Connection: close


def test_a_connection_can_be_used_again_after_429(start: Start, tmp_path):
    graphs.publish(tmp_path, work=100)  # a run takes at least half a second
    server = start(MODEL_STORE=tmp_path, MAX_IN_FLIGHT=1, ENGINE_WORKERS=1).ready()
    with (
        ThreadPoolExecutor(1) as pool,
        contextlib.closing(http.client.HTTPConnection(*server.address, timeout=HANG)) as client,
    ):
        running = pool.submit(server.http.post, "/detect", content=PNG)
        eventually(lambda: one_request_in_flight(client))
        client.connect() if client.sock is None else None
        used = client.sock
        client.request("POST", "/detect", distinct(PNG, 1))
        response = client.getresponse()
        response.read()
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert running.result().status_code == 200
        client.request("POST", "/detect", distinct(PNG, 2))
        assert client.getresponse().status == 200
        assert client.sock is used


def one_request_in_flight(client: http.client.HTTPConnection) -> bool:
    client.request("GET", "/metrics")
    return b"\ndetector_requests_in_flight 1.0\n" in client.getresponse().read()


def test_curl_waits_for_100_continue_before_it_sends_a_long_body(server: Server, tmp_path):
    (tmp_path / "image.png").write_bytes(PNG + bytes(2_000_000))  # curl asks first from 1 MB on
    command = ["curl", "-sS", "--fail", "-v", "--data-binary", f"@{tmp_path}/image.png"]
    done = subprocess.run(
        [*command, "-H", "Expect: 100-continue", "-H", "Content-Type: image/png", f"{server.url}/detect"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert '"boxes"' in done.stdout
    assert "HTTP/1.1 100 Continue" in done.stderr


def test_pipelined_requests_are_answered_in_order_while_uploads_stall(start: Start, crowd):
    server = start(MAX_UPLOADS=1, MAX_IN_FLIGHT=1, RECEIVE_TIMEOUT=HANG, MIN_TRANSFER_RATE=1).ready()
    for _ in range(5):
        stalled(server, crowd, ENOUGH, 2_000_000)
    server.wait_for("detector_uploads_in_progress", 5)
    with connect(server) as connection:
        connection.sendall(
            upload(distinct(PNG, 1)) + upload(b"no image") + upload(distinct(PNG, 2), Connection="close")
        )
        received = b""
        while more := connection.recv(65536):
            received += more
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"400", b"200"]
