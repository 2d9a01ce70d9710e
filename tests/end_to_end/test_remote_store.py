"""MODEL_STORE as a URL: the service with a real S3 server that changes, fails, and comes back."""

import subprocess
import sys

import pytest

from tests.end_to_end.conftest import ROOT, Server, encoded, eventually, scene
from tests.service import graphs
from tests.service.s3 import S3

GREY = encoded(scene(96, 64))


@pytest.fixture
def s3():
    running = S3()
    yield running
    if running.running:
        running.stop()


@pytest.fixture
def settings(s3, tmp_path):
    return s3.environment | {"MODEL_STORE": s3.url, "MODEL_CACHE": tmp_path / "cache", "MODEL_POLL_SECONDS": 0.1}


def publish(s3: S3, tmp_path, version: int, **kind) -> None:
    s3.upload(graphs.publish(tmp_path / f"published-{version}", "plain", version, **kind), f"plain/{version}")


def version(server: Server) -> int:
    found: int = server.http.post("/detect", content=GREY).json()["model"]["version"]
    return found


def pin(s3: S3, *words: str) -> str:
    command = [sys.executable, "-m", "service.command_line", "pin", *words, "--store", s3.url]
    environment = s3.environment | {"PATH": ""}
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, env=environment).stdout


@pytest.mark.contract("4.9", "4.5")
def test_a_rollout_a_rollback_and_an_outage_of_the_store_lose_no_request(start, s3, settings, tmp_path):
    publish(s3, tmp_path, 1)
    server = start(**settings).ready()
    assert version(server) == 1

    publish(s3, tmp_path, 2)
    eventually(lambda: version(server) == 2)
    publish(s3, tmp_path, 3, card={"sha256": "0" * 64})
    eventually(lambda: server.http.get("/models").json()["refused_total"] == 1)
    (refused,) = server.http.get("/models").json()["refused"]
    assert refused["model"] == "plain/3"
    assert "SHA-256" in refused["reason"]
    assert version(server) == 2
    assert pin(s3, "plain/1") == "plain is pinned to version 1\n"
    eventually(lambda: version(server) == 1)
    s3.remove("plain/default")
    eventually(lambda: version(server) == 2)
    s3.remove("plain/3/")
    eventually(lambda: server.http.get("/models").json()["refused_total"] == 0)
    assert server.metric("detector_model_store_fault") == 0

    s3.stop()
    server.wait_for("detector_model_store_fault", 1)
    fault = server.http.get("/readyz").json()["store"]
    assert fault.startswith("the model store cannot be reached")
    assert server.http.get("/models").json()["store"] == fault
    assert version(server) == 2
    assert sum(f"{fault}; the loaded models are still served" in line for line in server.lines) == 1
    assert "127.0.0.1" not in fault
    assert not any("botocore" in line for line in server.lines)

    offline = start(**settings).ready()  # from the copy
    assert version(offline) == 2
    assert offline.http.get("/readyz").json()["store"] == fault

    s3.start()
    publish(s3, tmp_path, 4)
    for each in (server, offline):
        eventually(lambda each=each: version(each) == 4)
        each.wait_for("detector_model_store_fault", 0)
        assert each.http.get("/readyz").json()["store"] is None
    assert server.metric("detector_failed_total") == 0


@pytest.mark.contract("4.9")
def test_a_service_that_starts_while_the_store_is_down_waits_and_says_why(start, s3, settings, tmp_path):
    publish(s3, tmp_path, 1)
    s3.stop()
    server = start(**settings, METRICS_PORT=0)
    eventually(lambda: any("the model store cannot be reached" in line for line in server.lines))
    assert server.process.poll() is None
    s3.start()
    server.ready()
    assert version(server) == 1


@pytest.mark.contract("4.9", "7.1")
def test_a_bucket_that_does_not_exist_is_one_line_at_the_start(start, settings):
    server = start(**settings | {"MODEL_STORE": "s3://no-such-bucket/models"})
    assert server.process.wait(60) == 1
    server.reader.join(10)
    (line,) = server.lines
    assert line.endswith(
        "MODEL_STORE='s3://no-such-bucket/models': there is no such bucket or folder; correct its name, or create it\n"
    )
