"""A real Prometheus scrapes the service. Its rates and quantiles must match the requests that were sent."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from PIL import Image

from tests.end_to_end.conftest import Server, encoded
from tests.service import graphs

PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
GREY = encoded(Image.new("RGB", (96, 32), (102, 102, 102)))  # two detections, on a canvas of 96 x 64
REQUESTS = "detector_request_seconds_count"
ANSWERED = f"{REQUESTS}{{route='/detect', status='200'}}"
SCRAPE = """
global:
  scrape_interval: 250ms
  scrape_timeout: 250ms
scrape_configs:
  - job_name: detector
    static_configs:
      - targets: ["{target}"]
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Server]:
    """A service that has answered three images and one broken upload."""
    store = tmp_path_factory.mktemp("store")
    graphs.publish(store, "plain", 4)
    running = Server(MODEL_STORE=store).ready()
    _ask(running)
    yield running
    running.stop()


def _ask(service: Server) -> None:
    assert service.http.post("/detect", content=b"hello").status_code == 400
    for _ in range(3):
        assert service.http.post("/detect", content=GREY).status_code == 200


@pytest.fixture(scope="module")
def query(service, tmp_path_factory) -> Iterator[Callable[[str], list[float]]]:
    """Sends queries to a Prometheus that scrapes the service."""
    if PROMETHEUS is None:
        pytest.skip("prometheus is not installed (it is in Debian's package of that name)")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(SCRAPE.format(target="{}:{}".format(*service.address)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = (
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    )
    with (folder / "log").open("w") as log:
        prometheus = subprocess.Popen([PROMETHEUS, *options], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1") as api:
            _wait_until(lambda: _values(api, 'up{job="detector"}') == [1], (folder / "log").read_text)
            yield lambda expression: _values(api, expression)
    finally:
        prometheus.terminate()
        prometheus.wait(30)


def _values(api: httpx.Client, expression: str) -> list[float]:
    try:
        answer = api.get("/query", params={"query": expression}).json()
    except (httpx.TransportError, ValueError):  # it is still starting
        return []
    assert answer["status"] == "success", answer
    return [float(series["value"][1]) for series in answer["data"]["result"]]


def _wait_until(condition: Callable[[], bool], explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def scraped(service, query) -> Callable[[str], list[float]]:
    """The fixture `query`, after the requests were sent and scraped twice.

    One round is not enough, because Prometheus computes rates from the difference between two samples.
    """
    _wait_until(lambda: query(ANSWERED) == [3], lambda: f"{ANSWERED} is {query(ANSWERED)}, not 3")
    _ask(service)
    _wait_until(lambda: query(ANSWERED) == [6], lambda: f"{ANSWERED} is {query(ANSWERED)}, not 6")
    return query


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("detector_ready", 1),
        ('detector_model_info{model="plain", version="4", provider=~"C.*ExecutionProvider"}', 1),
        # requests between the first scrape and the last
        (f"max_over_time({ANSWERED}[1m]) - min_over_time({ANSWERED}[1m])", 3),
        # one of four was refused
        (f"sum(rate({REQUESTS}{{status='400'}}[1m])) / sum(rate({REQUESTS}{{route='/detect'}}[1m]))", 1 / 4),
        (f"increase(detector_rejected_total[1m]) / on() increase({REQUESTS}{{status='400'}}[1m])", 1),
        # two detections per image: all lie in the bucket from 1 to 2, and its middle is 1.5
        ("histogram_quantile(0.5, rate(detector_detections_per_image_bucket[1m]))", 1.5),
        # one image per batch: all lie in the bucket from 0 to 1
        ("histogram_quantile(0.9, sum by (le) (rate(detector_batch_size_bucket[1m])))", 0.9),
        # half of the canvas is padding: the bucket from 0.4 to 0.5
        ("histogram_quantile(1, rate(detector_batch_padded_ratio_bucket[1m]))", 0.5),
        ("rate(detector_batch_padded_ratio_sum[1m]) / rate(detector_batch_padded_ratio_count[1m])", 0.5),
        # read, decode, queue, inference and encode are observed once per image
        ("count(detector_stage_seconds_count == 6)", 5),
    ],
)
def test_prometheus_reports_the_known_requests(scraped, expression, expected):
    assert scraped(expression) == [pytest.approx(expected, rel=1e-3)]


def test_the_stages_take_less_time_than_their_requests(scraped):
    answered = ANSWERED.replace("_count", "_sum")
    (share,) = scraped(f"sum(detector_stage_seconds_sum) / sum({answered})")
    assert 0 < share <= 1


def test_a_quantile_of_latency_lies_between_the_fastest_and_the_slowest(scraped):
    buckets = f"rate({ANSWERED.replace('_count', '_bucket')}[1m])"
    (median,) = scraped(f"histogram_quantile(0.5, {buckets})")
    (slowest,) = scraped(f"histogram_quantile(1, {buckets})")
    assert 0 < median <= slowest <= 30  # seconds: the last bucket's bound


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (it is in Debian's package prometheus)")
def test_promtool_finds_no_fault_in_the_metrics(service):
    assert PROMTOOL
    service.http.post("/detect", content=GREY)
    scrape = service.http.get("/metrics").content
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=scrape, capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
