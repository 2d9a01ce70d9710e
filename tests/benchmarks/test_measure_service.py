"""`faster-rcnn benchmark service`, run through scripts/benchmark.py."""

import http.client
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.load import process_usage, servers
from benchmarks.load.raw_pipeline import Arrangement, Raw, arrangements, expected
from benchmarks.load.soak import fault
from benchmarks.load.uploads import of_one_image
from benchmarks.workers import Failed
from service.engine.providers import CPU, CUDA

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "model_store" / "shapes" / "1"
QUICK = ("--seconds", 0.5, "--rounds", 1, "--clients", 1, 4)


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", "service", *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def rows(text: str, name: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_all_contenders_are_measured_with_a_table_and_a_plot(tmp_path: Path) -> None:
    done = run(*QUICK, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "benchmark.md").read_text()
    assert text.strip() in done.stdout
    for name in ("service", "plain, 1 worker", "plain, 2 workers"):
        closed, opened = rows(text, name)[:2], rows(text, name)[2:]
        assert [row[1] for row in closed] == ["1", "4"]
        assert len(opened) == 3
        for row in closed:
            assert float(row[2]) > 0
            assert row[6] == "0"  # no failure: every answer that was compared equals the raw pipeline's
            assert float(row[7]) > 1  # CPU ms per image
            assert 0 < float(row[8]) <= (os.cpu_count() or 1) + 0.5  # cores
            assert float(row[9]) > 50  # MB
            assert float(row[10]) > 0  # × raw
        offered = [int(row[1]) for row in opened]
        assert offered[2] == pytest.approx(4 * offered[0], abs=3)
    assert {row[-2:][0] for row in rows(text, "raw pipeline")} == {"1.00"}
    assert re.search(r"One client waits -?[\d.]+ ms \(p50\) longer than decoding and inference", text)
    assert re.search(r"The clients, one process on the same cores, use [\d.]+ ms", text)
    assert re.search(r"service: at \d+/s offered it answers \d+% of its peak", text)
    with Image.open(tmp_path / "benchmark.png") as plot:
        assert plot.width > 1000


def test_a_serving_installation_can_measure_a_running_service_which_then_keeps_running(tmp_path: Path) -> None:
    for absent in ("torch", "torchvision", "onnx", "matplotlib", "tqdm", "psutil", "httpx"):
        (tmp_path / f"{absent}.py").write_text(f"raise ImportError('not here', name={absent!r})\n")
    Image.new("RGB", (64, 48), "white").save(tmp_path / "photo.jpg")
    with servers.own_service(MODEL) as server:
        url = server.url.removesuffix("/detect")
        done = run(*QUICK, "--url", url, "--folder", tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert servers.get(f"{url}/healthz")[0] == 200
    assert "plain" not in done.stdout
    assert "raw" not in done.stdout
    assert "1 images of 1 sizes, 64×48" in done.stdout
    refused = run("--out", tmp_path / "out", PYTHONPATH=str(tmp_path))
    assert "benchmark service: matplotlib is not installed; scripts/bootstrap dev installs what" in refused.stderr
    closed = rows(done.stdout, "service")[:2]
    assert all(float(row[7]) > 0 and float(row[9]) > 50 for row in closed)  # CPU and memory, from its /metrics


def test_a_soak_reports_memory_growth_and_failures_and_writes_every_sample(tmp_path: Path) -> None:
    done = run("--soak", 0.05, "--out", tmp_path / "soak")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ images of 200 random sizes, 8 clients, 0.05 min: none failed", done.stdout)
    grown = re.search(r"memory: [\d.]+ MB after 0.\d min, [\d.]+ MB at the end \(([+-][\d.]+)%\)", done.stdout)
    assert grown
    assert -50 < float(grown[1]) < 200
    heading, *samples = (tmp_path / "soak" / "soak.csv").read_text().splitlines()
    assert heading == "seconds,bytes,images,failed"
    assert [len(sample.split(",")) for sample in samples] == [4, 4]  # one for each turn


def grown(times: float) -> list[tuple[float, int]]:
    """Memory over a quarter of an hour: 100 MB once it has settled, and `times` as much at the end."""
    return [(60, 80_000_000), (300, 100_000_000), (600, 120_000_000), (900, round(100_000_000 * times))]


def test_a_soak_fails_if_an_image_failed_or_memory_grew_over_a_long_enough_time() -> None:
    assert fault({}, grown(1.03), 15) is None
    assert fault({}, [], 15) is None  # a server that does not report its memory
    assert fault({}, grown(1.04), 9) is None  # too short to tell
    assert "grown by 4.0% since minute 5.0" in (fault({}, grown(1.04), 15) or "")
    assert "images that failed: 3" in (fault({"500": 2, "no connection": 1}, grown(1), 0.1) or "")
    both = fault({"wrong": 1}, grown(1.5), 60) or ""
    assert "images that failed: 1" in both
    assert "grown by 50.0%" in both


def test_a_soak_in_which_images_fail_ends_with_one_line() -> None:
    done = run("--soak", 0.02, "--url", "http://127.0.0.1:1")  # where no server listens
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("faster-rcnn benchmark service: ")]
    assert "images that failed: " in line
    assert "Traceback" not in done.stderr


def test_a_url_without_a_server_ends_with_one_line() -> None:
    with servers.own_service(MODEL) as server:
        url = server.url.removesuffix("/detect")
    done = run(*QUICK, "--url", url)
    assert done.returncode != 0
    assert f"benchmark service: {url}/detect answers no image" in done.stderr
    assert "no connection" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_error_for_a_server_that_does_not_start_has_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="does not start; its last line is: "), servers.own_service(tmp_path / "a" / "1"):
        pass


def test_servers_end_with_the_benchmark() -> None:
    with servers.plain_server(MODEL, 2) as server:
        assert len(server.pids) >= 3  # the parent and its workers
        image = of_one_image(MODEL / "example.jpg")[0].numbered(0)
        address = server.url.split("/")[2]
        connection = http.client.HTTPConnection(address)
        connection.request("POST", "/detect", image, {"Content-Type": "image/jpeg"})
        assert b'"boxes"' in connection.getresponse().read()
        connection.close()
        used = server.usage()
        assert used.memory is not None
        assert used.memory > 50e6
    assert process_usage.usage(server.pids).memory == 0


def test_the_raw_pipeline_sums_over_its_processes() -> None:
    uploads = of_one_image(MODEL / "example.jpg")
    raw = Raw(MODEL, uploads, Arrangement(processes=2, threads=1))
    try:
        done = raw.measure(0.5)
    finally:
        raw.close()
    assert done.images == len(done.latencies) > 2
    assert 0 < done.cpu_seconds <= 2 * 1.5 * done.seconds
    assert done.images / done.seconds == pytest.approx(2 / (sum(done.latencies) / done.images), rel=0.2)
    assert all(len(one.boxes) == len(one.scores) == len(one.labels) > 5 for one in expected(MODEL, uploads))


def test_arrangements_use_every_core_and_batches_only_on_a_gpu() -> None:
    assert arrangements(2, CPU) == [Arrangement(1, 2), Arrangement(2, 1)]
    assert arrangements(1, CPU) == [Arrangement(1, 1)]
    assert arrangements(20, CPU) == [Arrangement(1, 20), Arrangement(8, 3)]
    assert {one.batch for one in arrangements(4, CUDA)} == {1, 4, 8}
