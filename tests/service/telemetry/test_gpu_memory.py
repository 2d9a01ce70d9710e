"""GPU memory in the metrics; the driver is played, for there may be none here."""

import sys
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from service.telemetry import gpu_memory


def test_used_and_total_memory_of_every_gpu_are_scraped(monkeypatch):
    used = {0: 3, 1: 5}
    driver = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        NVMLError=KeyError,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=used[handle], total=80),
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    registry = CollectorRegistry()
    gpu_memory.watch(registry)
    used[1] = 7  # asked anew at each scrape
    scrape = generate_latest(registry).decode()
    for line in (
        'detector_gpu_memory_bytes{gpu="0",kind="used"} 3.0',
        'detector_gpu_memory_bytes{gpu="1",kind="used"} 7.0',
        'detector_gpu_memory_bytes{gpu="1",kind="total"} 80.0',
    ):
        assert line in scrape
    del used[0]  # a GPU that is lost
    scrape = generate_latest(registry).decode()
    assert 'gpu="0"' not in scrape
    assert 'detector_gpu_memory_bytes{gpu="1",kind="used"} 7.0' in scrape


def test_without_a_driver_the_metrics_go_on_without(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as where it is not installed
    registry = CollectorRegistry()
    gpu_memory.watch(registry)
    assert generate_latest(registry) == b""
    assert "GPU memory is not among the metrics" in caplog.text
