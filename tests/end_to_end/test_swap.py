"""Versions that are added, replaced and removed while requests are answered."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.end_to_end.conftest import ROOT, Server, distinct, encoded, eventually, problem
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
    server.wait_for("detector_arriving_versions", 1)
    (arriving,) = server.http.get("/models").json()["arriving"]
    size = (folder / "model.json").stat().st_size
    assert arriving == {"model": "plain/2", "state": f"it is still arriving, {size} bytes so far"}
    shutil.copy(store.parent / "aside" / "plain" / "2" / "model.onnx", folder)
    eventually(lambda: version(server) == 2)
    assert server.metric("detector_refused_versions") == server.metric("detector_arriving_versions") == 0
    assert "publish the model again" not in "".join(server.lines)


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


@pytest.mark.contract("4.4")
def test_the_models_stay_served_when_the_volume_of_the_store_is_not_mounted(server, store):
    store.rename(store.parent / "volume")
    store.mkdir()
    eventually(lambda: any("the model store is empty" in line for line in server.lines))
    assert version(server) == 1
    ready = server.http.get("/readyz")
    assert ready.status_code == 200
    assert "empty" in ready.json()["store"]
    assert "empty" in server.http.get("/models").json()["store"]
    store.rmdir()
    (store.parent / "volume").rename(store)
    eventually(lambda: server.http.get("/readyz").json()["store"] is None)


def two_models(start, tmp_path, **settings) -> tuple[Server, Path]:
    store = tmp_path / "store"
    graphs.publish(store, "one")
    graphs.publish(store, "two")
    return start(MODEL_STORE=store, MODEL_POLL_SECONDS=0.1, **settings), store


def refused_without_a_name(server: Server) -> str:
    """The detail of the error for a request that names no model, after checks that /readyz agrees."""
    response = server.http.post("/detect", content=GREY)
    document = problem(response, 503)
    assert document["reason"] == "default_model"
    assert int(response.headers["retry-after"]) > 0
    assert problem(server.http.get("/readyz"), 503)["detail"] == document["detail"]
    assert server.http.get("/models").json()["default"]["reason"] == document["detail"]
    return document["detail"]


@pytest.mark.parametrize("how", ["setting", "file"])
@pytest.mark.contract("3.7", "4.5")
def test_a_default_model_removed_from_the_store_is_not_replaced_by_another(start, tmp_path, how):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "default").write_text("one\n" if how == "file" else "two\n")
    server, store = two_models(start, tmp_path, **({"DEFAULT_MODEL": "one"} if how == "setting" else {}))
    server.ready()
    (store / "one").rename(tmp_path / "gone")
    eventually(lambda: server.http.get("/readyz").status_code == 503)
    assert "The default model one is not served: it is not in the model store" in refused_without_a_name(server)
    assert server.http.post("/detect?model=two", content=GREY).json()["model"]["name"] == "two"
    (tmp_path / "gone").rename(store / "one")
    eventually(lambda: server.http.get("/readyz").status_code == 200)
    assert server.http.post("/detect", content=GREY).json()["model"]["name"] == "one"


@pytest.mark.parametrize("fault", ["cut", "hash", "labels", "no such model", "empty file"])
@pytest.mark.contract("3.7", "4.5")
def test_a_default_model_that_cannot_be_served_at_the_start_is_not_replaced_by_another(start, tmp_path, fault):
    store = tmp_path / "store"
    card = {"hash": {"sha256": "0" * 64}, "labels": {"labels": ["same", "same"]}}.get(fault)
    folder = graphs.publish(store, "one", card=card)
    graphs.publish(store, "two")
    (store / "default").write_text({"no such model": "three\n", "empty file": ""}.get(fault, "one\n"))
    if fault == "cut":
        graph = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(graph[: len(graph) // 2])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(MODEL_STORE=store, MODEL_POLL_SECONDS=0.1, PORT=port)
    server.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    eventually(lambda: any("/readyz answers 503" in line for line in server.lines))
    refused_without_a_name(server)
    assert server.http.post("/detect?model=two", content=GREY).json()["model"]["name"] == "two"
    (store / "default").write_text("two\n")
    eventually(lambda: server.http.get("/readyz").status_code == 200)
    assert server.http.post("/detect", content=GREY).json()["model"]["name"] == "two"


@pytest.mark.contract("4.5", "6.1")
def test_a_rollback_is_one_command_and_needs_no_restart(server, store):
    drop_in(store, 2)
    eventually(lambda: version(server) == 2)
    pin("plain/1", store)
    eventually(lambda: version(server) == 1)
    assert server.http.get("/models").json()["pins"] == {"plain": 1}
    drop_in(store, 3)
    server.wait_for("detector_model_info", 1, version="3")
    assert version(server) == 1
    assert server.http.post("/detect?version=3", content=GREY).json()["model"]["version"] == 3
    (store / "plain" / "1").rename(store.parent / "gone")
    eventually(lambda: server.http.get("/readyz").status_code == 503)
    document = problem(server.http.post("/detect?model=plain", content=GREY), 503)
    assert document["reason"] == "pinned_version"
    assert "plain is pinned to version 1, which is not served" in document["detail"]
    eventually(lambda: any("WARNING" in line and "plain is pinned to version 1" in line for line in server.lines))
    pin("plain", store, "--newest")
    eventually(lambda: server.http.get("/readyz").status_code == 200)
    assert version(server) == 3


@pytest.mark.contract("4.5", "6.1")
def test_the_default_model_is_changed_by_one_command(start, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "default").write_text("one")
    server, store = two_models(start, tmp_path)
    server.ready()
    pin("two", store, "--default")
    eventually(lambda: server.http.post("/detect", content=GREY).json()["model"]["name"] == "two")


def pin(place: str, store: Path, *options: str) -> None:
    command = [sys.executable, "-m", "service.command_line", "pin", place, "--store", str(store), *options]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)


def test_a_served_version_whose_card_becomes_faulty_still_answers_and_its_refusal_says_so(server, store):
    card = json.loads((store / "plain" / "1" / "model.json").read_text())
    (store / "plain" / "1" / "model.json").write_text(json.dumps(card | {"labels": ["first", "first"]}))
    eventually(lambda: server.http.get("/models").json()["refused"])
    [refused] = server.http.get("/models").json()["refused"]
    assert refused["reason"].endswith("it still answers as it was when it was loaded")
    assert version(server) == 1
