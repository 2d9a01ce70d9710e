"""The metric of GPU memory, with a stub in place of the driver, because the machine may have no GPU."""

import sys
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from service.telemetry import gpu_memory


def test_used_and_total_memory_of_every_gpu_are_reported(monkeypatch):
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
    used[1] = 7  # read again at each scrape
    scrape = generate_latest(registry).decode()
    for line in (
        'detector_gpu_memory_bytes{gpu="0",kind="used"} 3.0',
        'detector_gpu_memory_bytes{gpu="1",kind="used"} 7.0',
        'detector_gpu_memory_bytes{gpu="1",kind="total"} 80.0',
    ):
        assert line in scrape
    del used[0]  # a GPU that has failed
    scrape = generate_latest(registry).decode()
    assert 'gpu="0"' not in scrape
    assert 'detector_gpu_memory_bytes{gpu="1",kind="used"} 7.0' in scrape


def test_without_a_driver_there_are_no_metrics_of_gpu_memory(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it now fails as if it were not installed
    registry = CollectorRegistry()
    gpu_memory.watch(registry)
    assert generate_latest(registry) == b""
    assert "metrics of GPU memory are not available" in caplog.text
