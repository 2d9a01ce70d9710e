"""The service on Ray Serve: a head and two more nodes on this machine, with HAProxy, and the embedded model."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.conftest import STORE, distinct, encoded, problem, scene
from tests.service import graphs

pytest.importorskip("ray.serve", reason="ray is not installed; it is in the extra ray")

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("ray_cluster.py")
IMAGE = encoded(scene(320, 240), "JPEG")
JPEG = {"Content-Type": "image/jpeg"}
MARK = "RAY_FLEET_OF_TEST"  # a variable that every process of the cluster inherits, by which they are found again
REPLICAS = 3
PLACES = 8  # MAX_IN_FLIGHT of each replica; one replica alone must be able to take the 6 clients of a test
PATIENCE = 240  # seconds; a start of Ray takes 20 s, or much longer on a busy machine


class RayFleet:
    """The cluster.  url: where clients connect;  folder: where Ray and its HAProxy write."""

    def __init__(self, store: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, because Ray has sockets in it
        self._mark = uuid.uuid4().hex
        port, metrics, statistics = (free_ports(1) for _ in range(3))
        replicas, self.metrics_port = free_ports(20), free_ports(10)
        self.url = f"http://127.0.0.1:{port}"
        self.args: dict[str, object] = {
            "replicas": REPLICAS,
            "model_store": str(store),
            "default_model": "shapes",
            "metrics_port": self.metrics_port,
            "engine_threads": 1,
            "max_in_flight": PLACES,
            "model_poll_seconds": 0,
        }
        environment = os.environ | {
            MARK: self._mark,
            "RAY_TMPDIR": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self.folder / "haproxy" / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self.folder / "haproxy" / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self.folder / "haproxy" / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self.folder / "haproxy"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self.folder / "haproxy" / "server-state"),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas + 20),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
            "RAY_memory_monitor_refresh_ms": "0",  # it would end replicas because of what other programs take
            "RAY_raylet_start_wait_time_s": str(PATIENCE),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        (self.folder / "haproxy").mkdir()
        options = {"port": port, "args": self.args}
        self.output = (self.folder / "output").open("w+")
        self._program = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(options)],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.output,
            text=True,
        )
        self._done: queue.Queue[bool] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._program.stdout
        for line in self._program.stdout:
            if line == "done\n":
                self._done.put(True)
        self._done.put(False)

    def wait(self) -> None:
        """Waits until the cluster has done what it was told to do."""
        try:
            done = self._done.get(timeout=PATIENCE)
        except queue.Empty:
            done = False
        assert done, self.log()

    def log(self) -> str:
        return (self.folder / "output").read_text()[-4000:]

    def tell(self, **command: object) -> None:
        assert self._program.stdin
        self._program.stdin.write(f"{json.dumps(command)}\n")
        self._program.stdin.flush()
        self.wait()

    def deploy(self, **changes: object) -> None:
        self.tell(deploy=self.args | changes)

    def metrics(self) -> list[dict[tuple[str, frozenset[tuple[str, str]]], float]]:
        """The samples of each replica, by name and labels."""
        found = []
        for port in range(self.metrics_port, self.metrics_port + 10):
            with contextlib.suppress(httpx.HTTPError):
                families = text_string_to_metric_families(
                    httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
                )
                samples = [sample for family in families for sample in family.samples]
                found.append({(each.name, frozenset(each.labels.items())): each.value for each in samples})
        return found

    def sums(self, name: str, **labels: str) -> list[float]:
        """The sum of the samples called `name` that have these labels, of each replica."""
        return [
            sum(value for (each, own), value in replica.items() if each == name and labels.items() <= own)
            for replica in self.metrics()
        ]

    def stop(self) -> None:
        """Ends every process of the cluster. They are looked for several times, because they start one another."""
        for _ in range(5):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if process.environ().get(MARK) == self._mark:
                        process.kill()
            time.sleep(0.2)
        self._program.wait()
        self.output.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(number: int) -> int:
    """The first of `number` ports in a row that are free now, below those that the system hands out."""
    for _ in range(1000):
        first = 20_000 + uuid.uuid4().int % 10_000
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            for port in range(first, first + number):
                opened.enter_context(socket.create_server(("0.0.0.0", port)))
            return first
    raise RuntimeError("no free ports")


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[RayFleet]:
    store = tmp_path_factory.mktemp("store")
    (store / "shapes").symlink_to(STORE / "shapes")
    graphs.publish(store, "slow", work=50)  # half a second per run, or more on a busy machine
    graphs.publish(store, "slowest", work=200)
    running = RayFleet(store)
    try:
        running.wait()
        yield running
    finally:
        running.stop()


@pytest.fixture
def http(fleet) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.url, timeout=PATIENCE) as client:
        yield client


def detect(http: httpx.Client, number: int, **query: str) -> httpx.Response:
    return http.post("/detect", content=distinct(IMAGE, number), headers=JPEG, params=query)


def answers_during(fleet: RayFleet, event: Callable[[], object], clients: int = 6) -> list[object]:
    """The status, or the error, of every request of several clients, from before the event until after it."""
    outcomes: list[object] = []
    happened = threading.Event()

    def send(client: int) -> None:
        left, number = 5, client * 100_000
        with httpx.Client(base_url=fleet.url, timeout=PATIENCE) as http:
            while left:
                number += 1
                left -= happened.is_set()
                try:
                    outcomes.append(detect(http, number).status_code)
                except httpx.HTTPError as error:
                    outcomes.append(repr(error))

    threads = [threading.Thread(target=send, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(outcomes) >= 5 * clients)
        event()
    finally:
        happened.set()
        for thread in threads:
            thread.join()
    return outcomes


@pytest.mark.contract("8.4")
def test_requests_reach_all_replicas_and_their_metrics_add_up(fleet, http):
    before = fleet.sums("detector_request_seconds_count", route="/detect")
    assert len(before) == REPLICAS
    outcomes = answers_during(fleet, lambda: None)
    assert Counter(outcomes) == {200: len(outcomes)}
    after = fleet.sums("detector_request_seconds_count", route="/detect")
    assert all(now > then for now, then in zip(after, before, strict=True))
    assert sum(after) - sum(before) == len(outcomes)
    assert problem(http.get("/metrics"), 404)["reason"] == "unknown_path"  # it would be those of one replica


@pytest.mark.contract("8.4")
def test_the_answer_is_that_of_the_service(http):
    found = detect(http, 1)
    assert found.status_code == 200
    assert found.json()["labels"]
    assert found.headers["Image-Id"] == found.json()["image"]["id"]
    assert http.get("/readyz").json()["status"] == "ready"
    again = http.get("/proposals", params={"image_id": found.headers["Image-Id"]})
    assert problem(again, 404)["reason"] == "unknown_image"


@pytest.mark.contract("8.4")
def test_a_request_id_comes_back_once(http):
    for given in ("mine-1", None):
        answer = http.get("/nothing", headers={"X-Request-ID": given} if given else {})
        (request_id,) = answer.headers.get_list("X-Request-ID")
        assert problem(answer, 404)["request_id"] == request_id
        assert given in (None, request_id)


@pytest.mark.contract("8.4")
def test_the_refusals_of_a_replica_reach_the_client(fleet, http):
    """24 places, or 27 with those for new clients, and 40 requests."""
    refused: list[httpx.Response] = []
    with ThreadPoolExecutor(40) as pool:
        for answer in pool.map(lambda number: detect(http, number, model="slow"), range(200, 240)):
            if answer.status_code == 429:
                refused.append(answer)
            else:
                assert answer.status_code == 200
    assert refused
    for answer in refused:
        assert problem(answer, 429)["reason"] == "overloaded"
        assert int(answer.headers["Retry-After"]) >= 1
        assert len(answer.headers.get_list("X-Request-ID")) == 1


@pytest.mark.contract("8.4")
def test_a_client_that_hangs_up_costs_no_inference(fleet, http):
    """Each of three replicas works on one image while two more clients come and hang up: 3 are computed, and 6 are not.

    It counts only if they hang up while all three still work, so it is repeated until that is the case.
    """
    for attempt in range(10):
        eventually(lambda: in_flight(fleet) == [0, 0, 0])
        before = computed(fleet), left(fleet)
        first = 1000 * (attempt + 1)
        with ThreadPoolExecutor(3) as pool:
            staying = [pool.submit(detect, http, first + number, model="slowest") for number in range(3)]
            eventually(lambda: in_flight(fleet) == [1, 1, 1])
            leaving = [upload_without_reading(fleet.url, distinct(IMAGE, first + number)) for number in range(10, 16)]
            eventually(lambda: sum(in_flight(fleet)) == 9 or any(each.done() for each in staying))  # noqa: B023
            for connection in leaving:
                connection.close()
            eventually(lambda: sum(in_flight(fleet)) <= 3)
            in_time = not any(each.done() for each in staying)
            assert [each.result().status_code for each in staying] == [200] * 3
        if in_time:
            eventually(lambda: in_flight(fleet) == [0, 0, 0])
            assert (computed(fleet) - before[0], left(fleet) - before[1]) == (3, 6)
            return
    pytest.skip("the machine is too slow: the clients never hung up before the images ahead of them were done")


def computed(fleet: RayFleet) -> float:
    return sum(fleet.sums("detector_batch_size_sum"))


def left(fleet: RayFleet) -> float:
    return sum(fleet.sums("detector_cancelled_total", reason="disconnected"))


def in_flight(fleet: RayFleet) -> list[float]:
    return fleet.sums("detector_requests_in_flight")


def upload_without_reading(url: str, image: bytes) -> socket.socket:
    address = httpx.URL(url)
    assert address.port
    connection = socket.create_connection((address.host, address.port), timeout=PATIENCE)
    head = f"POST /detect?model=slowest HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n"
    connection.sendall(f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + image)
    return connection


@pytest.mark.contract("8.5")
def test_no_request_is_lost_while_all_replicas_are_replaced(fleet):
    """`serve.run` replaces every replica, and of the three only two remain."""
    began = Counter(fleet.sums("process_start_time_seconds"))

    def replace() -> None:
        fleet.deploy(replicas=2)
        eventually(lambda: len(fleet.metrics()) == 2)

    outcomes = answers_during(fleet, replace)
    assert Counter(outcomes) == {200: len(outcomes)}
    assert not began & Counter(fleet.sums("process_start_time_seconds"))


@pytest.mark.contract("8.5")
def test_a_killed_node_loses_only_what_was_in_flight_on_it(fleet):
    """Its replica has at most as many requests in flight as there are clients. The other replica answers meanwhile."""
    clients = 6
    outcomes = answers_during(fleet, lambda: fleet.tell(kill=True), clients)
    lost = [outcome for outcome in outcomes if outcome != 200]
    assert len(lost) <= clients, Counter(outcomes)
    assert Counter(answers_during(fleet, lambda: None)).keys() == {200}
    eventually(lambda: len(fleet.metrics()) == 2)  # Serve has replaced it, on a node that was free


def test_every_setting_that_serve_decides_is_a_setting():
    from service import ray_serve
    from service.settings import Settings

    assert set(ray_serve.SERVE_DECIDES) <= set(Settings.model_fields)
