"""The shipped HAProxy configuration before three real services: routing, errors, drains and kills."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.fleet.replicas import ADDRESSES, CONFIGURATION, Balancer, free_port, missing_packages
from tests.deploy.conftest import Fleet, running_fleet
from tests.end_to_end.conftest import Server, distinct, encoded, eventually, scene
from tests.service import graphs

IMAGE = encoded(scene(320, 240), "JPEG")
JPEG = {"Content-Type": "image/jpeg"}


def detect(http: httpx.Client, number: int) -> httpx.Response:
    return http.post("/detect", content=distinct(IMAGE, number), headers=JPEG)


def answers_during(fleet: Fleet, event: Callable[[], object], clients: int = 6, after: int = 20) -> list[object]:
    """The status, or the error, of every request of several clients until each has sent `after` after the event."""
    outcomes: list[object] = []
    happened = threading.Event()

    def send(client: int) -> None:
        left, number = after, client * 100_000
        with httpx.Client(base_url=fleet.url, timeout=30) as http:
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
    eventually(lambda: len(outcomes) >= 5 * clients)
    event()
    happened.set()
    for thread in threads:
        thread.join()
    return outcomes


def restart(fleet: Fleet, address: str) -> None:
    fleet.replicas[address].process.wait(60)
    fleet.replicas[address] = fleet.start(address).ready()
    fleet.balancer.wait_until_up(ADDRESSES)


@pytest.mark.contract("8.1")
def test_requests_reach_all_replicas(fleet):
    before = {address: computed(replica) for address, replica in fleet.replicas.items()}
    answers_during(fleet, lambda: None)
    assert all(computed(replica) > before[address] for address, replica in fleet.replicas.items())


def computed(replica: Server) -> float:
    return replica.metric("detector_batch_size_sum")


@pytest.mark.contract("8.1")
def test_no_request_is_lost_when_a_replica_drains(fleet):
    address = ADDRESSES[0]
    outcomes = answers_during(fleet, lambda: fleet.replicas[address].process.send_signal(signal.SIGTERM))
    assert Counter(outcomes) == {200: len(outcomes)}
    assert fleet.replicas[address].process.wait(60) == 0
    restart(fleet, address)


@pytest.mark.contract("8.1")
def test_no_request_is_lost_when_a_replica_is_killed(fleet):
    address = ADDRESSES[1]
    outcomes = answers_during(fleet, fleet.replicas[address].process.kill)
    assert Counter(outcomes) == {200: len(outcomes)}
    restart(fleet, address)


@pytest.mark.contract("8.2")
def test_a_recent_upload_is_found_on_the_replica_that_keeps_it(fleet):
    replicas = set()
    with httpx.Client(base_url=fleet.url, timeout=30) as http:
        for number in range(12):
            before = {address: computed(replica) for address, replica in fleet.replicas.items()}
            uploaded = http.post("/detect?proposals=true", content=distinct(IMAGE, -number), headers=JPEG)
            replicas |= {address for address, each in fleet.replicas.items() if computed(each) > before[address]}
            again = http.get("/proposals", params={"image_id": uploaded.headers["Image-Id"]})
            assert again.status_code == 200
            assert again.json()["boxes"] == uploaded.json()["proposals"]["boxes"]
    assert len(replicas) > 1  # otherwise nothing was shown


@pytest.mark.contract("8.2")
def test_another_client_does_not_get_an_upload(fleet):
    with httpx.Client(base_url=fleet.url, timeout=30) as http:
        image_id = detect(http, -100).headers["Image-Id"]
        stranger = httpx.HTTPTransport(local_address="127.0.0.99")
        with httpx.Client(base_url=fleet.url, transport=stranger, timeout=30) as other:
            assert other.get("/proposals", params={"image_id": image_id}).status_code == 404
            spoofed = {"X-Forwarded-For": "127.0.0.1"}
            assert other.get("/proposals", params={"image_id": image_id}, headers=spoofed).status_code == 404
        assert http.get("/proposals", params={"image_id": image_id}).status_code == 200


@pytest.mark.contract("8.1")
def test_the_request_id_reaches_the_replica_and_comes_back_once(fleet):
    with httpx.Client(base_url=fleet.url) as http:
        for given in ("mine-1", None):
            answer = http.get("/nothing", headers={"X-Request-ID": given} if given else {})
            (request_id,) = answer.headers.get_list("X-Request-ID")
            assert answer.json()["request_id"] == request_id
            assert given in (None, request_id)


@pytest.mark.contract("8.1")
def test_a_request_id_that_the_service_would_not_take_is_replaced_before_it_is_logged(fleet):
    answer = httpx.get(fleet.url + "/nothing", headers={"X-Request-ID": 'a "b"'})
    assert str(uuid.UUID(answer.headers["X-Request-ID"])) == answer.headers["X-Request-ID"]  # HAProxy's form


@pytest.mark.contract("8.1")
def test_a_long_upload_that_is_refused_before_it_has_arrived_ends_the_connection(fleet):
    with httpx.Client(base_url=fleet.url, timeout=30) as http:
        refused = http.post("/detect", content=bytes(21 * 2**20), headers=JPEG)
        assert (refused.status_code, refused.headers["Connection"]) == (413, "close")
        assert "Connection" not in http.post("/detect", content=b"none", headers=JPEG).headers


def test_a_connection_without_a_request_is_closed_silently(tmp_path):
    """A browser opens connections in advance, and would take a 408 for the answer to its next request."""
    configuration = CONFIGURATION.read_text()
    waits = "timeout http-request 20s"
    assert waits in configuration
    short = tmp_path / "haproxy.cfg"
    short.write_text(configuration.replace(waits, "timeout http-request 200ms"))
    with (
        balancer_without_replicas(tmp_path, short) as balancer,
        socket.create_connection((balancer.host, balancer.port), timeout=30) as idle,
    ):
        assert idle.recv(1000) == b""


@pytest.mark.contract("8.1")
def test_without_the_address_of_any_replica_the_balancer_starts_and_says_so(tmp_path):
    with balancer_without_replicas(tmp_path) as balancer:
        nobody = httpx.post(f"{balancer}/detect", content=IMAGE, headers={"X-Request-ID": "mine-2"})
    assert (nobody.status_code, nobody.json()["reason"]) == (503, "no_replica")
    assert nobody.headers.get_list("X-Request-ID") == ["mine-2"]


@contextlib.contextmanager
def balancer_without_replicas(folder: Path, configuration: Path = CONFIGURATION) -> Iterator[httpx.URL]:
    if missing := missing_packages():
        pytest.skip(f"not installed (Debian packages): {', '.join(missing)}")
    balancer = Balancer((), free_port("127.0.0.1"), folder / "haproxy.log", configuration)
    try:
        eventually(lambda: is_listening(balancer.status))
        yield httpx.URL(balancer.url)
    finally:
        balancer.close()


def is_listening(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.ConnectError:
        return False


@pytest.mark.contract("8.1")
def test_a_replica_that_hangs_gets_no_further_requests(fleet):
    address = ADDRESSES[2]
    hung = fleet.replicas[address].process
    hung.send_signal(signal.SIGSTOP)
    try:
        fleet.balancer.wait_until_up(ADDRESSES[:2])
        outcomes = answers_during(fleet, lambda: None)
    finally:
        hung.send_signal(signal.SIGCONT)
    assert Counter(outcomes) == {200: len(outcomes)}
    fleet.balancer.wait_until_up(ADDRESSES)


def test_the_metrics_of_a_replica_are_not_served_to_clients(fleet):
    for path in ("/metrics", "/metrics/", "/metrics?x"):
        answer = httpx.get(fleet.url + path)
        assert (answer.status_code, answer.json()["reason"]) == (404, "unknown_path")
    assert "haproxy_server_status" in httpx.get(f"{fleet.status}/metrics").text


def hang_up_during_a_run(fleet: Fleet) -> None:
    """Sends an image and disconnects while a replica works on it. The replica must hear of that."""
    image = encoded(Image.new("RGB", (96, 64), (200, 102, 102)))
    head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
    url = httpx.URL(fleet.url)
    assert url.port

    def total(name: str, **labels: str) -> float:
        return sum(replica.metric(name, **labels) for replica in fleet.replicas.values())

    eventually(lambda: total("detector_requests_in_flight") == 0)
    before = total("detector_cancelled_total", reason="disconnected")
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(head.encode() + image)
        eventually(lambda: total("detector_requests_in_flight") == 1)
    eventually(lambda: total("detector_cancelled_total", reason="disconnected") == before + 1)


@pytest.mark.contract("8.1")
def test_the_refusals_of_a_replica_reach_the_client_untouched(tmp_path):
    store = tmp_path / "store"
    graphs.publish(store, work=100)  # half a second per image
    images = [encoded(Image.new("RGB", (96, 64), (number, 102, 102))) for number in range(40)]
    with (
        running_fleet(tmp_path, store, MAX_IN_FLIGHT=1) as fleet,
        httpx.Client(base_url=fleet.url, timeout=60) as http,
        ThreadPoolExecutor(len(images)) as pool,
    ):
        answers = list(pool.map(lambda image: http.post("/detect", content=image), images))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        for answer in refused:
            assert answer.status_code == 429
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert int(answer.headers["Retry-After"]) >= 1
        hang_up_during_a_run(fleet)
        for replica in fleet.replicas.values():
            replica.process.kill()
        fleet.balancer.wait_until_up([])
        nobody = http.post("/detect", content=IMAGE, headers=JPEG)
        assert (nobody.status_code, nobody.json()["reason"]) == (503, "no_replica")
        assert nobody.headers["Content-Type"] == "application/problem+json"
        assert int(nobody.headers["Retry-After"]) >= 1
