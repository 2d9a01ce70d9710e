"""Versions that are added, replaced and removed while requests are answered."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.end_to_end.conftest import Server, distinct, encoded, eventually, problem
from tests.service import graphs

GREY = encoded(Image.new("RGB", (96, 64), (102, 102, 102)))  # brightness 0.4


@pytest.fixture
def store(tmp_path):
    graphs.publish(tmp_path / "store", version=1)
    return tmp_path / "store"


@pytest.fixture
def server(start, store) -> Server:
    return start(MODEL_STORE=store, MODEL_POLL_SECONDS=0.1).ready()


def drop_in(store, version, **kind):
    """Publishes a version as export.py does: writes it to another folder, then renames that."""
    aside = store.parent / "aside"
    graphs.publish(aside, version=version, **kind)
    target = store / "plain" / str(version)
    if target.exists():
        target.rename(store.parent / f"old-{time.monotonic_ns()}")
    (aside / "plain" / str(version)).rename(target)


def version(server: Server) -> int:
    found: int = server.http.post("/detect", content=GREY).json()["model"]["version"]
    return found


@pytest.mark.contract("4.4")
def test_a_new_version_takes_over_under_load_and_no_request_fails(server, store):
    stopped = threading.Event()

    def client(number: int) -> list[tuple[int, int]]:
        answers, sent = [], 0
        while not stopped.is_set():
            response = server.http.post("/detect", content=distinct(GREY, 1000 * number + sent))
            sent += 1
            assert response.json()["scores"] == [0.4, 0.2]
            answers.append((response.status_code, response.json()["model"]["version"]))
        return answers

    with ThreadPoolExecutor(8) as pool:
        try:
            clients = [pool.submit(client, number) for number in range(8)]
            eventually(lambda: server.metric("detector_batch_size_sum") >= 8)
            drop_in(store, 2)
            eventually(lambda: version(server) == 2)
            drop_in(store, 3)
            eventually(lambda: version(server) == 3)
        finally:
            stopped.set()
        for each in clients:
            answers = each.result()
            assert {status for status, _ in answers} == {200}
            versions = [version for _, version in answers]
            assert versions == sorted(
                versions
            )  # no client gets an answer from an older version after one from a newer version
            assert {1, 2} <= set(versions)
    assert server.metric("detector_failed_total") == 0
    assert server.metric("detector_model_changes_total", change="served") == 3
    assert server.metric("detector_model_load_seconds_count") == 3
    assert server.http.post("/detect?version=1", content=GREY).json()["model"]["version"] == 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({"card": {"sha256": "0" * 64}}, "SHA-256"),
        ({"rename": {"boxes": "bboxes"}}, "boxes is missing"),
        ({"card": {"canvases": [[8, 8]]}}, "no canvas holds"),
    ],
)
def test_a_broken_version_is_refused_with_the_reason_and_the_old_one_stays_served(server, store, kind, reason):
    drop_in(store, 2, **kind)
    server.wait_for("detector_model_refused", 1, model="plain/2")
    assert version(server) == 1
    (refused,) = server.http.get("/models").json()["refused"]
    assert refused["model"] == "plain/2"
    assert reason in refused["reason"]
    assert any("plain/2" in line and reason in line for line in server.lines)
    assert server.http.get("/readyz").status_code == 200
    drop_in(store, 2)  # the repaired version
    eventually(lambda: version(server) == 2)
    assert server.http.get("/models").json()["refused"] == []
    assert server.metric("detector_model_refused") == 0


def test_an_incomplete_version_is_served_once_it_is_complete(server, store):
    graphs.publish(store.parent / "aside", version=2)
    folder = store / "plain" / "2"
    folder.mkdir()
    shutil.copy(store.parent / "aside" / "plain" / "2" / "model.json", folder)
    server.wait_for("detector_model_refused", 1, model="plain/2")
    shutil.copy(store.parent / "aside" / "plain" / "2" / "model.onnx", folder)
    eventually(lambda: version(server) == 2)


@pytest.mark.contract("4.4")
def test_a_removed_version_still_answers_the_requests_admitted_before(start, tmp_path):
    store = tmp_path / "store"
    graphs.publish(store, version=1)
    graphs.publish(store, version=2, work=150)  # slow enough to be removed before it answers
    server = start(MODEL_STORE=store, MODEL_POLL_SECONDS=0.1, ENGINE_WORKERS=1).ready()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.http.post, "/detect", content=distinct(GREY, n)) for n in range(2)]
        server.wait_for("detector_requests_in_flight", 2)
        (store / "plain" / "2").rename(tmp_path / "gone")
        eventually(lambda: server.http.get("/models/plain").json()["versions"] == [1])
        assert [each.result().json()["model"]["version"] for each in asked] == [2, 2]
    assert version(server) == 1
    problem(server.http.post("/detect?version=2", content=GREY), 404)
    server.wait_for("detector_model_drain_seconds_count", 1)
    assert server.metric("detector_model_info", version="2") == 0


def test_the_models_stay_served_when_the_store_cannot_be_read(server, store):
    store.rename(store.parent / "elsewhere")
    eventually(lambda: any("loaded models are still served" in line for line in server.lines))
    assert version(server) == 1
    assert server.http.get("/readyz").status_code == 200
    (store.parent / "elsewhere").rename(store)
    drop_in(store, 2)
    eventually(lambda: version(server) == 2)


def test_the_service_is_not_ready_while_the_store_has_no_model(server, store):
    (store / "plain" / "1").rename(store.parent / "gone")
    eventually(lambda: server.http.get("/readyz").status_code == 503)
    assert problem(server.http.post("/detect", content=GREY), 503)["reason"] == "no_model"
    (store.parent / "gone").rename(store / "plain" / "1")
    eventually(lambda: server.http.get("/readyz").status_code == 200)
    assert version(server) == 1


def test_a_default_model_removed_from_the_store_is_not_replaced_by_another(start, tmp_path):
    store = tmp_path / "store"
    graphs.publish(store, "one")
    graphs.publish(store, "two")
    server = start(MODEL_STORE=store, MODEL_POLL_SECONDS=0.1, DEFAULT_MODEL="one").ready()
    (store / "one").rename(tmp_path / "gone")
    eventually(lambda: server.http.get("/models").json()["default"] is None)
    assert "Available: two" in problem(server.http.post("/detect", content=GREY), 422)["detail"]
    assert server.http.post("/detect?model=two", content=GREY).json()["model"]["name"] == "two"
