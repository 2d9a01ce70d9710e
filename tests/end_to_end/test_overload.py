"""Overload, clients that disconnect, deadlines that pass, and images on which the engine fails."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from tests.end_to_end.conftest import Server, distinct, encoded, problem
from tests.service import graphs

GREY = encoded(Image.new("RGB", (96, 64), (102, 102, 102)))  # brightness 0.4
WHITE = encoded(Image.new("RGB", (96, 64), "white"))
SLOW = 100  # matrix products of 5 to 10 ms each: a run takes at least half a second
HANG = 30  # seconds after which a read from a socket counts as hanging


@pytest.fixture
def slow_store(tmp_path):
    graphs.publish(tmp_path, work=SLOW)
    return tmp_path


def raw_request(length: int) -> bytes:
    head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
    return head.encode()


def test_a_service_at_its_limit_of_requests_answers_429_at_once_and_recovers(start, slow_store):
    server = start(MODEL_STORE=slow_store, MAX_IN_FLIGHT=3, ENGINE_WORKERS=1, ENGINE_THREADS=1, BATCH_PIXELS=1).ready()
    with ThreadPoolExecutor(12) as pool:
        working = [pool.submit(server.http.post, "/detect", content=distinct(GREY, n)) for n in range(3)]
        server.wait_for("detector_requests_in_flight", 3)
        refused = list(pool.map(lambda n: server.http.post("/detect", content=distinct(GREY, 3 + n)), range(9)))
        assert not all(each.done() for each in working)  # so the refusals did not wait for the three requests
        for response in refused:
            problem(response, 429)
            assert int(response.headers["retry-after"]) >= 1
        assert server.metric("detector_rejected_total", reason="overloaded") == 9
        assert [each.result().status_code for each in working] == [200] * 3
    server.wait_for("detector_requests_in_flight", 0)
    assert server.http.post("/detect", content=GREY).status_code == 200


def test_a_request_is_refused_with_429_before_its_body_is_sent(start, slow_store):
    server = start(MODEL_STORE=slow_store, MAX_IN_FLIGHT=1).ready()
    with (
        socket.create_connection(server.address, HANG) as working,
        socket.create_connection(server.address, HANG) as other,
    ):
        working.sendall(raw_request(len(GREY)) + GREY)
        server.wait_for("detector_requests_in_flight", 1)
        other.sendall(raw_request(len(GREY)))
        assert other.recv(4096).startswith(b"HTTP/1.1 429 ")


def test_a_deadline_that_passes_in_the_queue_or_in_the_engine_gets_504(start, tmp_path):
    graphs.publish(tmp_path, work=4 * SLOW)
    server = start(MODEL_STORE=tmp_path, REQUEST_TIMEOUT=1, ENGINE_WORKERS=1, ENGINE_THREADS=1).ready()
    running = distinct(GREY, 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.http.post, "/detect", content=running)
        server.wait_for(
            "detector_upload_bytes_total", len(running)
        )  # the only engine is now busy with it for at least 2 s
        assert "1 s" in problem(server.http.post("/detect", content=GREY), 504)["detail"]
        problem(first.result(), 504)
    assert server.metric("detector_cancelled_total", reason="deadline", stage="queue") == 1
    assert server.metric("detector_cancelled_total", reason="deadline", stage="inference") == 1


@pytest.mark.contract("5.5")
def test_a_client_that_disconnects_costs_no_inference(start, tmp_path):
    graphs.publish(tmp_path, work=4 * SLOW)  # the first run must not end before the other clients have disconnected
    server = start(MODEL_STORE=tmp_path, ENGINE_WORKERS=1, BATCH_PIXELS=1).ready()
    running = threading.Thread(target=lambda: server.http.post("/detect", content=GREY))
    running.start()
    server.wait_for("detector_requests_in_flight", 1)
    connections = []
    for number in range(3):
        image = distinct(GREY, number)
        connections.append(socket.create_connection(server.address))
        connections[-1].sendall(raw_request(len(image)) + image)
    server.wait_for("detector_queue_depth", 3)
    for connection in connections:
        connection.close()
    server.wait_for("detector_cancelled_total", 3, reason="disconnected", stage="queue")
    running.join()
    assert server.metric("detector_batch_size_sum") == 1
    assert server.metric("detector_requests_in_flight") == 0


def test_a_client_that_disconnects_during_its_upload_is_counted(start, slow_store):
    server = start(MODEL_STORE=slow_store).ready()
    with socket.create_connection(server.address) as connection:
        connection.sendall(raw_request(1000) + b"abc")
        server.wait_for("detector_uploads_in_progress", 1)
        assert server.metric("detector_requests_in_flight") == 0
    server.wait_for("detector_cancelled_total", 1, reason="disconnected", stage="read")
    server.wait_for("detector_uploads_in_progress", 0)
    server.wait_for("detector_requests_in_flight", 0)


@pytest.mark.contract("5.4")
def test_an_image_that_breaks_the_engine_fails_alone(start, tmp_path):
    graphs.publish(tmp_path, fails_on_white=True, work=20)
    server = start(MODEL_STORE=tmp_path, ENGINE_WORKERS=1, BATCH_PIXELS=1_000_000).ready()
    images = [GREY, WHITE, GREY, GREY, WHITE, GREY, GREY, GREY] * 2
    each = [distinct(data, number) for number, data in enumerate(images)]
    with ThreadPoolExecutor(len(images)) as pool:
        responses = list(pool.map(lambda data: server.http.post("/detect", content=data), each))
    for data, response in zip(images, responses, strict=True):
        if data is WHITE:
            assert problem(response, 500)["reason"] == "engine"
        else:
            assert response.json()["scores"] == [0.4, 0.2]
    assert server.metric("detector_failed_total", reason="engine") == 4
    assert server.http.get("/readyz").status_code == 200  # it is not dead, because a blank image still succeeds
    assert server.metric("detector_batch_size_bucket", le="1.0") < server.metric("detector_batch_size_count")


def test_broken_images_do_not_affect_good_ones(server):
    good = encoded(Image.new("RGB", (300, 200), (50, 90, 130)))
    bodies = [good, good[:-30], b"hello", b"", good] * 4
    with ThreadPoolExecutor(10) as pool:
        statuses = list(pool.map(lambda data: server.http.post("/detect", content=data).status_code, bodies))
    assert statuses == [200, 400, 400, 400, 200] * 4


@pytest.mark.contract("1.4")
def test_requests_for_proposals_do_not_run_the_roi_head(start, slow_store):
    server = start(MODEL_STORE=slow_store).ready()
    whole = server.http.post("/detect", content=GREY).json()["timing"]["inference_ms"]
    alone = server.http.post("/proposals", content=GREY).json()["timing"]["inference_ms"]
    assert alone < whole / 5


def test_health_answers_while_the_engine_is_busy(start, slow_store):
    server = start(MODEL_STORE=slow_store, ENGINE_WORKERS=1, BATCH_PIXELS=1).ready()
    with ThreadPoolExecutor(8) as pool:
        working = [pool.submit(server.http.post, "/detect", content=distinct(GREY, n)) for n in range(8)]
        server.wait_for("detector_queue_depth", 7)
        with httpx.Client(base_url=server.url) as http:
            assert [http.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
        assert not all(each.done() for each in working)  # so the answers above did not wait for the engine
        assert [each.result().status_code for each in working] == [200] * 8


@pytest.mark.contract("3.10")
def test_a_client_whose_requests_take_all_places_does_not_keep_out_another_one(start, slow_store):
    server = start(
        MODEL_STORE=slow_store, MAX_IN_FLIGHT=4, ENGINE_WORKERS=1, BATCH_PIXELS=1, TRUSTED_PROXIES="127.0.0.1"
    ).ready()

    def send(client: str, number: int) -> int:
        headers = {"X-Forwarded-For": client}
        return server.http.post("/detect", content=distinct(GREY, number), headers=headers).status_code

    with ThreadPoolExecutor(4) as pool:
        greedy = [pool.submit(send, "192.0.2.1", number) for number in range(4)]
        server.wait_for("detector_requests_in_flight", 4)
        assert send("192.0.2.1", 9) == 429
        assert send("192.0.2.2", 10) == 200
        assert [each.result() for each in greedy] == [200] * 4


def crowd(server: Server, number: int) -> list[httpx.Response]:
    """The answers to `number` different images sent at once."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda n: server.http.post("/detect", content=distinct(GREY, n)), range(number)))


def test_retry_after_follows_the_current_rate(start, tmp_path):
    graphs.publish(tmp_path, work=SLOW)
    server = start(MODEL_STORE=tmp_path, ENGINE_WORKERS=1, ENGINE_THREADS=1, BATCH_PIXELS=1, MAX_IN_FLIGHT=8).ready()
    answered = crowd(server, 4)  # now the rate is known
    fastest = min(answer.json()["timing"]["inference_ms"] for answer in answered) / 1000
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(server.http.post, "/detect", content=distinct(GREY, 10 + n)) for n in range(8)]
        server.wait_for("detector_queue_depth", 7)
        refused = server.http.post("/detect", content=GREY)
        problem(refused, 429)
        # seven images wait, and one engine answers them one after another
        assert 7 * fastest <= int(refused.headers["retry-after"]) <= 60
        assert [each.result().status_code for each in waiting] == [200] * 8


def test_a_request_whose_timeout_is_shorter_than_the_queue_is_refused(start, tmp_path):
    graphs.publish(tmp_path, work=SLOW)
    server = start(MODEL_STORE=tmp_path, ENGINE_WORKERS=1, ENGINE_THREADS=1, BATCH_PIXELS=1).ready()
    crowd(server, 3)  # from here on, the rate is known
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(server.http.post, "/detect", content=distinct(GREY, 10 + n)) for n in range(8)]
        server.wait_for("detector_queue_depth", 7)
        problem(server.http.post("/detect?timeout=0.1", content=GREY), 429)
        assert [each.result().status_code for each in waiting] == [200] * 8


def test_a_request_may_set_its_own_timeout(start, slow_store):
    server = start(MODEL_STORE=slow_store, ENGINE_WORKERS=1, BATCH_PIXELS=1, REQUEST_TIMEOUT=20).ready()
    with ThreadPoolExecutor(4) as pool:
        patient = [pool.submit(server.http.post, "/detect", content=distinct(GREY, n)) for n in range(3)]
        server.wait_for("detector_queue_depth", 2)
        hasty = pool.submit(server.http.post, "/detect?timeout=0.2", content=GREY)
        assert "0.2 s" in problem(hasty.result(), 504)["detail"]
        assert [each.result().status_code for each in patient] == [200] * 3
    assert server.metric("detector_cancelled_total", reason="deadline", stage="queue") == 1
    assert server.metric("detector_batch_size_sum") == 3
    assert "20 s" in problem(server.http.post("/detect?timeout=21", content=GREY), 422)["detail"]


@pytest.mark.contract("5.3")
def test_bulk_requests_yield_to_interactive_ones_and_may_use_half_of_the_places(start, tmp_path):
    graphs.publish(tmp_path, work=SLOW)
    server = start(MODEL_STORE=tmp_path, ENGINE_WORKERS=1, BATCH_PIXELS=1, MAX_IN_FLIGHT=6).ready()
    finished: list[str] = []

    def send(number: int, priority: str) -> int:
        response = server.http.post(f"/detect?priority={priority}", content=distinct(GREY, number))
        finished.append(priority)
        return response.status_code

    with ThreadPoolExecutor(8) as pool:
        bulk = [pool.submit(send, number, "bulk") for number in range(3)]
        server.wait_for("detector_queue_depth", 2)  # the third is in the engine
        assert send(9, "bulk") == 429
        interactive = [pool.submit(send, 10 + number, "interactive") for number in range(2)]
        assert [each.result() for each in bulk + interactive] == [200] * 5
    assert finished == [
        "bulk",
        "bulk",
        "interactive",
        "interactive",
        "bulk",
        "bulk",
    ]  # the first of them is the refused request


def test_identical_images_sent_at_once_share_one_inference(start, slow_store):
    server = start(MODEL_STORE=slow_store, ENGINE_WORKERS=1).ready()
    with ThreadPoolExecutor(6) as pool:
        queries = ["", "?proposals=true", "?max_detections=1", "?label=second", "", "?score_threshold=0.3"]
        asked = [pool.submit(server.http.post, f"/detect{query}", content=GREY) for query in queries]
        found = [each.result().json()["scores"] for each in asked]
    assert found == [[0.4, 0.2], [0.4, 0.2], [0.4], [0.2], [0.4, 0.2], [0.4]]
    assert server.metric("detector_batch_size_sum") + server.metric("detector_shared_total") == 6
    assert server.metric("detector_shared_total") > 0
