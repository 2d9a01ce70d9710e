"""Every query of the Grafana dashboard returns data from a real Prometheus that scrapes a service under load."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.end_to_end.conftest import Server, encoded
from tests.service import graphs

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "detector.json").read_text())
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    if panel["type"] != "row"
    for target in panel["targets"]
}
# These series exist only with a GPU, or once what they count has happened.
MAYBE_EMPTY = (
    "detector_gpu_memory_bytes",
    "detector_cancelled_total",
    "detector_failed_total",
    "detector_out_of_memory_total",
    "detector_image_warnings_total",
    "detector_connections_closed_total",
)
# What no panel shows, because it belongs to one of the shown metrics or is for a closer look.
NOT_SHOWN = {
    "detector_detections_per_image",
    "detector_key_requests",
    "detector_model_drain_seconds",
    "detector_model_load_seconds",
    "detector_model_refused",
    "detector_shape_changes",
}
GREY = encoded(Image.new("RGB", (96, 32), (102, 102, 102)))
SCRAPE = """
global:
  scrape_interval: 250ms
  scrape_timeout: 250ms
scrape_configs:
  - job_name: detector
    static_configs:
      - targets: ["{}:{}"]
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    graphs.publish(store, "plain", 4)
    running = Server(MODEL_STORE=store).ready()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def query(service, tmp_path_factory) -> Iterator[Callable[[str], list[float]]]:
    """Sends queries to a Prometheus that scrapes the service while it is used."""
    if not (program := shutil.which("prometheus")):
        pytest.skip("prometheus is not installed (it is in Debian's package of that name)")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(SCRAPE.format(*service.address))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)

    def ask(expression: str) -> list[float]:
        answer = httpx.get(f"http://{address}/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        return [float(each["value"][1]) for each in answer.json()["data"]["result"]]

    try:
        deadline = time.monotonic() + 60
        while True:  # two scrapes, between which images were answered and an upload was refused
            service.http.post("/detect", content=GREY)
            service.http.post("/proposals", content=GREY)
            service.http.post("/detect", content=b"not an image")
            try:
                if ask("min(count_over_time(detector_ready[1m])) >= 4"):
                    break
            except httpx.HTTPError:
                assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield ask
    finally:
        process.kill()
        process.wait()


def expression(panel: str) -> str:
    return QUERIES[panel].replace("$__rate_interval", "1m").replace("$job", ".*")


@pytest.mark.contract("8.3")
@pytest.mark.parametrize("panel", QUERIES)
def test_a_panel_has_data(query, panel):
    values = query(expression(panel))
    if not any(name in expression(panel) for name in MAYBE_EMPTY):
        assert values
    assert not any(math.isnan(value) for value in values)


def test_every_metric_is_in_a_panel(service):
    text = service.http.get("/metrics").text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE detector_")}
    families = {name.removesuffix("_total").removesuffix("_info").removesuffix("_created") for name in names}
    shown = " ".join(QUERIES.values())
    assert {name for name in families if name not in shown} == NOT_SHOWN & families


def test_no_two_panels_overlap_or_share_an_id():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in panels]
    assert len(set(places)) == len(places)
